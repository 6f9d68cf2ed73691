"""Whole runs: configuration, folder, train, fit, evaluate, ablation, online prediction."""
