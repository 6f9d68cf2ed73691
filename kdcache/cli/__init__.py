"""The command line: parse, call the Python function of the same name, print."""

from kdcache.cli.root import main

__all__ = ["main"]
