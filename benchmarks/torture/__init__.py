"""The long proof that nothing is lost, nothing is silent and nothing hangs: ``python -m benchmarks.torture CLASS``."""
