"""Inputs that are made from sources while training, not read from a cache."""
