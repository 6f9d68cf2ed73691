"""Truncated Matroska or WebM files, found by their elements, walked from the first to the last without reading frames.

After damage decoders go on at the next place that makes sense to them, and the frames in between are gone without a
word. Walking the chain of lengths (RFC 8794 §6, RFC 9559 §5.1) finds where it breaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_EBML, _SEGMENT, _CLUSTER, _TRACKS, _TRACK, _GROUP = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE, 0xA0
_TRACK_NUMBER, _SIMPLE_BLOCK, _BLOCK = 0xD7, 0xA3, 0xA1
_ANYWHERE = {0xEC, 0xBF}  # Void, CRC-32
_INSIDE: dict[int, set[int] | None] = {  # what may stand in the elements that are walked into; None: anything
    _SEGMENT: {0x114D9B74, 0x1549A966, _TRACKS, 0x1043A770, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1254C367} | _ANYWHERE,
    _CLUSTER: {0xE7, 0xA7, 0xAB, _SIMPLE_BLOCK, _GROUP, 0xAF, 0x5854} | _ANYWHERE,
    _TRACKS: {_TRACK} | _ANYWHERE,
    _TRACK: None,
    _GROUP: None,
}


class _Broken(Exception):
    """The chain of elements breaks; the message says where."""


def matroska(fd: int, size: int) -> str | None:
    """What is wrong with the chain of elements of an open file of ``size`` bytes, in words, or ``None``.

    Costs one small read an element: about a second for an hour of video with sound, from memory. Clusters whose length
    was left open, as live recordings have them, end the walk: there is nothing to hold them against.
    """
    tracks: set[int] = set()
    try:
        for number, body, length in _walk(fd, 0, size, {_EBML, _SEGMENT}):
            if number == _TRACK_NUMBER:
                tracks.add(int.from_bytes(os.pread(fd, length, body), "big"))
            elif number in (_SIMPLE_BLOCK, _BLOCK):
                head = os.pread(fd, 8, body)
                width = 9 - head[0].bit_length() if head else 9
                if int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1) not in tracks:
                    return f"it is damaged at byte {body:,}, in a block of no known track"
    except _Broken as broken:
        return str(broken)
    return None


def _walk(fd: int, at: int, end: int, known: set[int] | None) -> Iterator[tuple[int, int, int]]:
    """Yield (id, place, length) of each element from ``at`` to ``end``, and of those inside containers."""
    while at < end:
        head = os.pread(fd, 12, at)
        width = 9 - head[0].bit_length()
        more = 9 - head[width].bit_length() if len(head) > width else 9
        number = int.from_bytes(head[:width], "big")
        if known is not None and number not in known:
            if _EBML in known:
                return  # bytes after the Segment, which no reader uses
            raise _Broken(f"it is damaged at byte {at:,}, where no Matroska element starts")
        if more > 8 or len(head) < width + more:
            raise _Broken(f"it is damaged or cut at byte {at:,}")
        body = at + width + more
        length = int.from_bytes(head[width : width + more], "big") & ((1 << 7 * more) - 1)
        if length == (1 << 7 * more) - 1:
            if number == _CLUSTER:
                return
            length = end - body  # a Segment of unknown length: to the end of the file
        if body + length > end:
            raise _Broken(f"its element at byte {at:,} should end at byte {body + length:,}, after {end:,}")
        yield number, body, length
        if number in _INSIDE:
            yield from _walk(fd, body, body + length, _INSIDE[number])
        at = body + length
