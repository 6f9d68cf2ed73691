"""Copies of data that came read-only."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a folder; the copy can be changed whatever the permissions of the original."""
    shutil.copytree(source, target)
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return target
