"""Frames kept as JPEG: decoded only once their header claims no more than so many bytes can hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.store.layout import damaged

PIXELS = 2**26  # of one frame: 8192 × 8192
RATIO = 1024  # decoded bytes a byte of a file; a block of one colour takes two codes, each of at least a bit

_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, whatever the kind of JPEG


def picture_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in the header of a JPEG file; ``None`` where there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None


def decode_jpeg(files: Sequence[bytes], path: Path) -> NDArray[np.uint8]:
    """Decode JPEG files of one size to RGB, uint8 [T, H, W, 3].

    Raises:
        StoreError: a file that is not a JPEG picture, of another size than the first, or that claims to be larger than
            its bytes can make it.
    """
    import cv2

    if not files:
        return np.empty((0, 0, 0, 3), np.uint8)
    sizes = {picture_size(data) for data in files}
    size = sizes.pop()
    if sizes:
        raise damaged(path, "the JPEG frames of a clip differ in size")
    if size is None:
        raise damaged(path, "a JPEG frame cannot be decoded")
    pixels = size[0] * size[1]
    if pixels > PIXELS or 3 * pixels > RATIO * min(map(len, files)):
        raise damaged(path, f"a JPEG frame of {min(map(len, files))} bytes claims {size[1]} × {size[0]} pixels")
    out = np.empty((len(files), *size, 3), np.uint8)
    for data, place in zip(files, out, strict=True):
        try:
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise damaged(path, "a JPEG frame cannot be decoded") from error
        if frame is None or frame.shape != place.shape:
            raise damaged(path, "a JPEG frame cannot be decoded")
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=place)
    return out
