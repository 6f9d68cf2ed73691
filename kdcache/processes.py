"""Worker processes: started so that they need nothing of the user's script, and how many cores they share."""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Keep a process that is spawned inside from running the user's script again: it needs nothing of it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
