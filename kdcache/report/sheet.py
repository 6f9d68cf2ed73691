"""``kdcache show``: one clip's streams as a picture, each row one stream over time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.store import Cache
from kdcache.streams.base import COLUMNS, CachedKind, Strip, thumbnails
from kdcache.streams.registry import kind_of

Picture = NDArray[np.uint8]  # [H, W, 3] RGB

THUMB, GAP, LEFT = 150, 6, 118
_WIDTH = LEFT + COLUMNS * (THUMB + GAP) + 90
_BACK, _INK, _FAINT = (255, 255, 255), (30, 30, 36), (130, 130, 140)
_LINES = ((31, 119, 180), (214, 89, 46), (60, 140, 70), (140, 86, 170))


def show(cache: str | os.PathLike[str] | Cache, clip_id: str, output: str | os.PathLike[str] | None = None) -> Path:
    """Draw a contact sheet of one clip: frames, flow, trajectories, motion map, feature energy over time.

    Only streams that the cache holds are drawn; trajectories are computed here, from cached ``rgb``.

    Args:
        cache: folder, or an open ``Cache``.
        clip_id: which clip.
        output: PNG to write; default ``<clip_id>.png`` in the working directory.

    Returns:
        The path of the picture.

    Raises:
        OptionError: the cache has no such clip, none of its streams, or none that can be drawn.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    picture = sheet(cache, clip_id)
    path = Path(output) if output is not None else Path(f"{clip_id.replace(os.sep, '_')}.png")
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    return path


def sheet(cache: Cache, clip_id: str) -> Picture:
    """The contact sheet as uint8 [H, W, 3] RGB."""
    rows = cache.clips[cache.clips["clip_id"] == clip_id]
    if rows.empty:
        raise OptionError(f"{cache.path}: there is no clip {clip_id!r}; see the column clip_id of its manifest.csv.")
    held = [s for s in cache.streams if bool(cache.has(s)[rows.index[0]])]
    if not held:
        raise OptionError(f"{cache.path}: clip {clip_id!r} has no cached stream; run extract first.")
    kinds = {s: kind_of(cache.recipe(s)) for s in held}
    strips: list[Strip] = []
    for name, kind in kinds.items():
        array, frames = cache.read(name, [clip_id])[0], np.asarray(cache.frames(name, [clip_id])[0])
        strips += kind.strips(name, cache.recipe(name), array, frames)
    if not strips:
        alike = len(set(kinds.values())) == 1
        reason = (kinds[held[0]] if alike else CachedKind).undrawn(clip_id, ", ".join(held))
        raise OptionError(f"{cache.path}: {reason}")
    strips.sort(key=lambda strip: strip.order)
    bands = [_title({str(k): v for k, v in rows.iloc[0].items()}, cache.origin([clip_id])[0])]
    bands += [_band(strip) for strip in strips]
    curves = {strip.note: strip.curve for strip in strips if strip.curve is not None}
    if curves:
        bands.append(_curves(curves))
    return np.concatenate(bands)


# ---------------------------------------------------------------------------
# rows
# ---------------------------------------------------------------------------


def _thumb(image: Picture) -> Picture:
    height, width = image.shape[:2]
    size = (THUMB, max(1, round(height * THUMB / width)))
    shrink = width > THUMB
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST), np.uint8)


def _band(strip: Strip) -> Picture:
    """One labelled row of thumbnails with their source frame numbers."""
    picked = thumbnails(len(strip.images))
    thumbs = [_thumb(strip.images[i]) for i in picked]
    band = _blank(thumbs[0].shape[0] + 24)
    for column, (i, thumb) in enumerate(zip(picked, thumbs, strict=True)):
        x = LEFT + column * (THUMB + GAP)
        band[: thumb.shape[0], x : x + THUMB] = thumb
        if len(strip.frames):  # imported features may not tell
            number = strip.frames[min(int(i), len(strip.frames) - 1)]
            band = _text(band, (x, thumb.shape[0] + 3), f"frame {number}", _FAINT, 11)
    if strip.legend is not None:
        x = LEFT + COLUMNS * (THUMB + GAP)
        band[: strip.legend.shape[0], x : x + strip.legend.shape[1]] = strip.legend[: band.shape[0]]
    band = _text(band, (10, 4), strip.title, _INK, 14)
    return _text(band, (10, 24), strip.note, _FAINT, 11)


def _curves(curves: dict[str, NDArray[np.float32]]) -> Picture:
    """Energy over time, one line a stream, each scaled to its own peak."""
    height, width = 130, COLUMNS * (THUMB + GAP) - GAP
    image = Image.fromarray(_blank(height + 30))
    draw = ImageDraw.Draw(image)
    draw.line([(LEFT, height), (LEFT + width, height)], fill=_FAINT)
    draw.line([(LEFT, 8), (LEFT, height)], fill=_FAINT)
    for number, (name, curve) in enumerate(curves.items()):
        x = LEFT + np.linspace(0, width, len(curve)) if len(curve) > 1 else np.array([LEFT, LEFT + width])
        y = height - (height - 16) * np.resize(curve, len(x)) / (float(curve.max()) + 1e-12)
        colour = _LINES[number % len(_LINES)]
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=3)
        draw.text((LEFT + 8 + 220 * number, height + 8), f"{name}: peak {curve.max():.3g}", fill=colour, font=_font(12))
    band = np.array(image)
    band = _text(band, (10, 4), "feature", _INK, 14)
    return _text(band, (10, 22), "energy over time", _INK, 12)


def _title(row: dict[str, Any], origin: dict[str, Any]) -> Picture:
    start = "start" if row["start_s"] != row["start_s"] else f"{row['start_s']:.2f} s"
    stop = "end" if row["stop_s"] != row["stop_s"] else f"{row['stop_s']:.2f} s"
    facts = [f"{row['source']}, {start} to {stop}"]
    facts += [
        f"{k} {row[k]}"
        for k in ("class", "label", "verb", "noun", "role", "split")
        if row.get(k) not in (None, "") and row[k] == row[k]
    ]
    facts += [f"{origin['width']} x {origin['height']} px"] if "width" in origin else []
    facts += [str(origin["decoder"])] if "decoder" in origin else []
    band = _text(_blank(64), (10, 8), str(row["clip_id"]), _INK, 20)
    return _text(band, (10, 38), "   ".join(facts), _FAINT, 12)


def _blank(height: int) -> Picture:
    return np.full((height, _WIDTH, 3), _BACK, np.uint8)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _text(band: Picture, at: tuple[int, int], text: str, colour: tuple[int, int, int], size: int) -> Picture:
    if not text:
        return band
    image = Image.fromarray(band)
    ImageDraw.Draw(image).text(at, text, fill=colour, font=_font(size))
    return np.array(image)
