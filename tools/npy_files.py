"""File names of clips in a folder of ``.npy`` files."""

from __future__ import annotations

import re
from pathlib import Path

from kdcache.errors import ClipError, SourceError
from kdcache.sources import inside

_UNSAFE = re.compile(r"[%/\\:]|^\.")


def file_name(clip_id: str) -> str:
    """The file of a clip in its folder: its id, with ``% / \\ :`` and a leading dot written as %25, %2F …"""
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", clip_id) + ".npy"


def find(folder: Path, clip_id: str) -> Path:
    """The file of a clip: under its ``file_name``, else under its id as it stands, which may name a folder below.

    Raises:
        ClipError: there is none inside the folder.
    """
    for name in dict.fromkeys((file_name(clip_id), f"{clip_id}.npy")):
        try:
            path = inside(folder, name)
        except SourceError as error:
            raise ClipError(str(error)) from error
        if path.is_file():
            return path
    raise ClipError(f"{folder} has no {file_name(clip_id)}; put it there, or leave the clip out.")
