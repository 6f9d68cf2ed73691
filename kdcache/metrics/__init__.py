"""Metrics in plain numpy: top-k and recall, early recognition, significance."""
