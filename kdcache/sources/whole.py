"""Is a video file all there? The sizes that its container declares, held against the bytes on disk."""

from __future__ import annotations

import os
from typing import BinaryIO

_MP4_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid"}
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_AT_LEVEL_1 = {  # Matroska, RFC 9559 §5.1: what may stand directly in a Segment
    *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1043A770, 0x1F43B675, 0x1C53BB6B, 0x1941A469, 0x1254C367),
    *(0xEC, 0xBF),  # Void, CRC-32
}


def shortfall(path: str) -> str | None:
    """What an mp4/mov, Matroska/WebM or AVI file lacks, in words; ``None`` if nothing, or if it is another kind.

    Reads only the headers of the outermost boxes. Exact: a copy that stopped anywhere inside a box is found, which
    decoders report as a shorter video.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_FIRST:
            return _mp4(file, size)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _riff(file, size)
        if int.from_bytes(head[:4], "big") == _EBML:
            return _matroska(file, size)
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


def _matroska(file: BinaryIO, size: int) -> str | None:
    """RFC 8794: the elements of the Segment must follow one another to its end."""
    at, end = 0, size
    while at < end:
        file.seek(at)
        head = file.read(12)
        width = _leading_zeros(head[0]) + 1
        number = int.from_bytes(head[:width], "big")
        length_width = _leading_zeros(head[width]) + 1 if len(head) > width else 9
        if length_width > 8 or len(head) < width + length_width:
            return f"it is damaged or cut at byte {at:,}"
        raw = int.from_bytes(head[width : width + length_width], "big")
        length = raw & ((1 << 7 * length_width) - 1)
        if length == (1 << 7 * length_width) - 1:
            if number != _SEGMENT:
                return None  # a live stream's element of unknown length: nothing to hold the file against
            length = end - at - width - length_width
        body = at + width + length_width
        if body + length > end:
            return _past_end("Segment" if number == _SEGMENT else "last element", body + length, size)
        if number == _SEGMENT:
            at, end = body, body + length
            continue
        if number != _EBML and number not in _AT_LEVEL_1:
            return f"it is damaged at byte {at:,}, where no Matroska element starts"
        at = body + length
    return None


def _leading_zeros(byte: int) -> int:
    return 8 - byte.bit_length()
