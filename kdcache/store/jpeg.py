"""Frames kept as JPEG: decoded only once their header claims no more than so many bytes can hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcache.picture_size import MOST_PIXELS, picture_size
from kdcache.store.layout import damaged

RATIO = 1024  # decoded bytes a byte of a file; a block of one colour takes two codes, each of at least a bit


def decode_jpeg(files: Sequence[bytes], path: Path) -> NDArray[np.uint8]:
    """Decode JPEG files of one size to RGB, uint8 [T, H, W, 3].

    Raises:
        StoreError: a file that is not a JPEG picture, of another size than the first, or that claims to be larger than
            its bytes can make it.
    """
    import cv2

    if not files:
        return np.empty((0, 0, 0, 3), np.uint8)
    sizes = {picture_size(data) if data[:2] == b"\xff\xd8" else None for data in files}  # PNG is none
    size = sizes.pop()
    if sizes:
        raise damaged(path, "the JPEG frames of a clip differ in size")
    if size is None:
        raise damaged(path, "a JPEG frame cannot be decoded")
    pixels = size[0] * size[1]
    if pixels > MOST_PIXELS or 3 * pixels > RATIO * min(map(len, files)):
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
