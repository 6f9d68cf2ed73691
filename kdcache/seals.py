"""Files that hold their own SHA-256, so that a changed byte is noticed when they are read back.

The digest stands in the file, for a file and a second one with its digest could not be replaced at once: in the header
of safetensors, in the comment at the end of what ``torch.save`` wrote, in the first line of JSON and TOML. It is that
of the whole file with zeros in the digest's place. Files of earlier versions have none and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kdcache.errors import OptionError
from kdcache.files import atomic, opened

BLANK = "kdcache-sha256:" + 64 * "0"
"""What to write where the digest shall stand; ``seal`` fills it in."""
KEY = "seal"
"""Name of the digest in JSON, the first."""

MOST_JSON = 2**28
"""Bytes; what kdcache keeps as JSON takes far less, and reading it several times as much."""

_SEAL = re.compile(rb"kdcache-sha256:(.{64})", re.DOTALL)
_REACH = 256  # bytes from the file's end or beginning within which it stands, but for safetensors
_BLOCK = 2**20
_LONGEST_HEADER = 100_000_000  # bytes; what the safetensors library accepts, too


def seal(path: Path) -> None:
    """Fill the digest in, in a file that holds ``BLANK`` and that nobody reads yet."""
    with path.open("r+b") as file:
        found = _find(file)
        assert found is not None, path
        digest = _digest(file, found[0])
        file.seek(found[0])
        file.write(digest.encode())


def seal_zip(path: Path) -> None:
    """Give an archive without a comment one that holds the digest."""
    with path.open("r+b") as file:
        file.seek(-2, 2)
        file.write(len(BLANK).to_bytes(2, "little") + BLANK.encode())
    seal(path)


def sealed(content: str) -> bytes:
    """A text that begins with ``BLANK``, or has it in its first line, with the digest filled in, in UTF-8."""
    raw = content.encode()
    return raw.replace(BLANK.encode(), BLANK[:-64].encode() + hashlib.sha256(raw).hexdigest().encode(), 1)


def is_sealed(path: Path) -> bool:
    """Whether a file holds a digest at all."""
    with opened(path) as file:
        return _find(file) is not None


def stated(path: Path) -> str:
    """The digest that a file holds, hexadecimal; empty where it holds none."""
    with opened(path) as file:
        found = _find(file)
    return "" if found is None else found[1].decode("ascii", "replace")


def is_broken(path: Path) -> bool:
    """Whether a file holds a digest that is not its own."""
    with opened(path) as file:
        found = _find(file)
        return found is not None and _digest(file, found[0]).encode() != found[1]


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small table atomically, with its digest."""
    with atomic(path) as temporary:
        temporary.write_bytes(sealed(json.dumps({KEY: BLANK, **content}, indent=1) + "\n"))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What ``write_json`` wrote, also that of earlier versions, without the digest.

    Args:
        path: of a file that exists.
        remedy: what to do if it is damaged, the end of a sentence.

    Raises:
        OptionError: its digest is another, it is no JSON object, or larger than any such table.
        KdcacheError: no plain file.
    """
    try:
        with opened(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MOST_JSON:
                raise ValueError(f"it has {size:,} bytes")
            content = json.loads(file.read())
        if not isinstance(content, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is damaged ({error}): {remedy}.") from error
    if is_broken(path):
        raise OptionError(f"{path} is not as it was written, its SHA-256 differs: {remedy}.")
    content.pop(KEY, None)
    return content


def _find(file: BinaryIO) -> tuple[int, bytes] | None:
    """Where the digest begins, and the digest."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_REACH)
    length = int.from_bytes(head[:8], "little")
    if head.startswith(b"PK"):
        start, span = max(0, size - _REACH), _REACH
    elif head[8:9] == b"{" and length <= min(size - 8, _LONGEST_HEADER):
        start, span = 8, length
    else:
        start, span = 0, _REACH
    file.seek(start)
    found = _SEAL.search(file.read(span))
    return None if found is None else (start + found.start(1), found[1])


def _digest(file: BinaryIO, at: int) -> str:
    """SHA-256 of the file with zeros in place of the 64 digits from ``at``."""
    digest = hashlib.sha256()
    file.seek(0)
    for size in (*(_BLOCK for _ in range(at // _BLOCK)), at % _BLOCK):
        digest.update(file.read(size))
    digest.update(64 * b"0")
    file.seek(at + 64)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
