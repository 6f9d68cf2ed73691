"""Stage one: from a manifest of clips to shards of cached streams."""
