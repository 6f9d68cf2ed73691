"""Rows of contact sheets: thumbnails beside a margin with their title, and text."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcache.streams.base import COLUMNS, Strip, thumbnails

Picture = NDArray[np.uint8]  # [H, W, 3] RGB

THUMB, GAP, LEFT = 150, 6, 118
_WIDTH = LEFT + COLUMNS * (THUMB + GAP) + 90
BACK, INK, FAINT = (255, 255, 255), (30, 30, 36), (130, 130, 140)
LINES = ((31, 119, 180), (214, 89, 46), (60, 140, 70), (140, 86, 170))


def _thumb(image: Picture) -> Picture:
    height, width = image.shape[:2]
    size = (THUMB, max(1, round(height * THUMB / width)))
    shrink = width > THUMB
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST), np.uint8)


def band_of(strip: Strip) -> Picture:
    """One labelled row of thumbnails with their source frame numbers."""
    picked = thumbnails(len(strip.images))
    thumbs = [_thumb(strip.images[i]) for i in picked]
    band = blank(thumbs[0].shape[0] + 24)
    for column, (i, thumb) in enumerate(zip(picked, thumbs, strict=True)):
        x = LEFT + column * (THUMB + GAP)
        band[: thumb.shape[0], x : x + THUMB] = thumb
        if len(strip.frames):  # imported features may not tell
            number = strip.frames[min(int(i), len(strip.frames) - 1)]
            band = written(band, (x, thumb.shape[0] + 3), f"frame {number}", FAINT, 11)
    if strip.legend is not None:
        x = LEFT + COLUMNS * (THUMB + GAP)
        band[: strip.legend.shape[0], x : x + strip.legend.shape[1]] = strip.legend[: band.shape[0]]
    band = written(band, (10, 4), strip.title, INK, 14)
    return written(band, (10, 24), strip.note, FAINT, 11)


def blank(height: int) -> Picture:
    """An empty row."""
    return np.full((height, _WIDTH, 3), BACK, np.uint8)


def font(size: int) -> Any:
    """The one font, in pixels."""
    return ImageFont.load_default(size)


def written(band: Picture, at: tuple[int, int], text: str, colour: tuple[int, int, int], size: int) -> Picture:
    """A row with text on it, whose upper left corner is at (x, y)."""
    if not text:
        return band
    image = Image.fromarray(band)
    ImageDraw.Draw(image).text(at, text, fill=colour, font=font(size))
    return np.array(image)
