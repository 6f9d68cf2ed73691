"""Comparisons of many runs: rows, tuning, replicates, tables."""
