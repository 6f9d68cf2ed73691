"""Training one stage: loop, checkpoints, log."""
