"""The package's files of presets and tables, damaged or changed: everything of them that a command asks for."""

from __future__ import annotations

import functools
import random
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from unittest import mock

from kdcache.runs import presets
from kdcache.runs.requirements import extraction_calls

METHODS = ("anticipation", "early", "relation")


def make_presets(folder: Path) -> None:
    """Those of a few methods, where ``read_all`` looks for them."""
    (folder / "presets").mkdir()
    for method in METHODS:
        with as_file(files("kdcache") / "presets" / f"{method}.toml") as path:
            shutil.copy(path, folder / "presets")


def read_all(folder: Path, rng: random.Random) -> None:
    """Tables with their options checked, rows, presets, and what they extract."""
    read_once = functools.cache(presets._read)  # all rows of all tables would read it thousands of times
    with mock.patch.object(presets, "files", return_value=folder), mock.patch.object(presets, "_read", read_once):
        for method in METHODS:
            for name, table in presets.tables(method).items():
                for row in table.rows:
                    if not row.quoted:
                        presets.row(method, f"{name}/{row.name}")
            for name in presets.names(method):
                presets.training(method, name)
                extraction_calls(method, name)
