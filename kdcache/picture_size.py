"""The size that the header of a JPEG or PNG file states: what decoding it would allocate, before it does."""

from __future__ import annotations

MOST_PIXELS = 2**26
"""Of one picture, 8192 × 8192: decoded, 200 MB. Larger ones are refused."""

_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, whatever the kind of JPEG


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of a JPEG or PNG file; ``None`` where there is none."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        whole = data[12:16] == b"IHDR" and len(data) >= 24
        return (int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")) if whole else None
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None
