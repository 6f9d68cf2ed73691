"""What can be cached for each clip: one kind of stream a file."""
