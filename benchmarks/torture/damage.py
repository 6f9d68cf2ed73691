"""Damage to the bytes of a file: single bits, bytes, runs of zeros, ends that are missing."""

from __future__ import annotations

import random

KINDS = {"bit": 60, "byte": 10, "zeros": 15, "cut": 15}
"""Kind → how often, of a hundred."""


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A kind of damage, and the file with it; never the file as it was, unless it is empty."""
    if not data:
        return "byte", b"\0"
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    at = rng.randrange(len(data))
    changed = bytearray(data)
    if kind == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        changed[at] ^= rng.randrange(1, 256)
    elif kind == "zeros":
        size = rng.choice((16, 512, 4096))
        at -= at % size  # as lost sectors are
        changed[at : at + size] = bytes(min(size, len(data) - at))
        if changed == data:  # zeros before
            return damaged(data, rng)
    else:
        del changed[at:]
    return kind, bytes(changed)
