"""Standard input, output and error of a program that was started without them, as by ``2>&-`` or some schedulers."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Let streams that are closed lead nowhere.

    The next file that is opened would take the number of a closed one, and what C libraries print would be written
    into a shard.
    """
    names = ("stdin", "stdout", "stderr")
    for number in range(len(names)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    for name in names:  # not before all three have their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
