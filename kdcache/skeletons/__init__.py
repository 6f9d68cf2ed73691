"""Skeleton files and the images that networks see of them."""
