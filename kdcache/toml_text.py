"""TOML files that people hand over: configurations of runs, presets."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from kdcache.files import opened

MOST_BYTES = 2**20
"""Larger files are no configuration, and are not read."""
_MOST_PARTS = 100  # of a dotted key


class BrokenToml(ValueError):
    """A file that is no such TOML; the message says why."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file, with or without byte order mark.

    Raises:
        BrokenToml: too large, not UTF-8, no TOML, or nested without end.
        KdcacheError: no plain file.
        OSError: it cannot be opened.
    """
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise BrokenToml(f"it has {size:,} bytes, and such files up to {MOST_BYTES:,}")
        data = file.read()
    if any(part.count(b".") > _MOST_PARTS for part in re.split(rb"[,=\n]", data)):  # tomllib takes their square
        raise BrokenToml("it is nested too deep")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise BrokenToml("it is nested too deep") from error
    except ValueError as error:  # neither TOML nor UTF-8
        raise BrokenToml(str(error)[:500]) from error
