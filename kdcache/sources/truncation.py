"""Truncated video files, found by comparing the sizes that a container declares with the bytes on disk."""

from __future__ import annotations

import os
from typing import BinaryIO

from kdcache.sources.matroska import matroska

_MP4_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid"}
_EBML = bytes.fromhex("1a45dfa3")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")  # its first object, the header
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the header's file properties object
_TS = 188  # bytes of an MPEG transport packet, each of which starts with "G" (ISO/IEC 13818-1 §2.4.3.2)


def find_truncation(path: str) -> str | None:
    """Where an mp4, Matroska, AVI, ASF or MPEG-TS file is cut off, in words; ``None`` if it is not, or is another kind.

    Reads only the headers of the boxes that hold the frames. Exact: a copy that stopped anywhere inside a box is
    found, where decoders see a shorter video. MPEG program streams declare no size; there, only a last frame that is
    cut gives a loss away, and in transport streams a cut within a packet of 188 bytes.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_FIRST:
            return _mp4(file, size)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _riff(file, size)
        if head[:4] == _EBML:
            return matroska(file.fileno(), size)
        if head == _ASF[:12]:
            return _asf(file, size)
        if all(os.pread(file.fileno(), 1, at) == b"G" for at in (0, _TS, 2 * _TS)) and size % _TS:
            return f"it ends {size % _TS} bytes into a transport packet of {_TS}"
    return None


def _past_end(what: str, end: int, size: int) -> str:
    return f"its {what} should end at byte {end:,} and the file ends at {size:,}"


def _mp4(file: BinaryIO, size: int) -> str | None:
    """ISO/IEC 14496-12 §4.2: a 32-bit size and a type; size 1 means a 64-bit size follows, 0 means to the end."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0 or length < 8 or not kind.isalnum():
            return None  # the last box, or bytes after it that are no box
        if at + length > size:
            return _past_end(f"{kind.decode('ascii')} box", at + length, size)
        at += length
    return None


def _riff(file: BinaryIO, size: int) -> str | None:
    """AVI is a RIFF chunk, followed by further ones in files above 1 GiB (OpenDML)."""
    at = 0
    while at + 12 <= size:
        file.seek(at)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length == 0:
            return None
        if at + 8 + length > size:
            return _past_end("RIFF chunk", at + 8 + length, size)
        at += 8 + length + length % 2
    return None


def _asf(file: BinaryIO, size: int) -> str | None:
    """ASF specification §3.2: the file properties hold the file's size, unless it was broadcast."""
    head = os.pread(file.fileno(), 65536, 0)
    at = head.find(_ASF_FILE)
    declared = int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0
    return _past_end("last packet", declared, size) if declared > size else None
