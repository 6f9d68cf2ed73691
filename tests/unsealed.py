"""Taking the digest out of a run's file, as earlier versions wrote it and as who edits one by hand has to."""

from __future__ import annotations

import re
from pathlib import Path


def unsealed(path: Path) -> Path:
    """The same path; its file no longer says what its digest is."""
    path.write_bytes(re.sub(rb"kdcache-sha256:[0-9a-f]{64}", 79 * b"x", path.read_bytes()))
    return path
