"""``kdcache show --run``: what a run sees in one clip, each picture of its method a row over time."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdcache.errors import OptionError
from kdcache.methods.pictures import Picture as Shown
from kdcache.report.strips import FAINT, GAP, INK, LEFT, LINES, THUMB, Picture, band_of, blank, font, written
from kdcache.runs.explain import Explanation, explain
from kdcache.runs.run import Run
from kdcache.store import Cache
from kdcache.streams.backbone import heat_colours
from kdcache.streams.base import COLUMNS, Strip, thumbnails

OPACITY = 0.75
"""Of the hottest colour over a frame; the coldest is clear."""
_HEIGHT = 110  # of a diagram
_RIGHT = LEFT + COLUMNS * (THUMB + GAP)


def run_sheet(cache: Cache, clip_id: str, run: Run | str | os.PathLike[str], which: str = "last") -> Picture:
    """The rows below a contact sheet, uint8 [H, W, 3] RGB; see ``kdcache.runs.explain.explain``.

    Raises:
        OptionError: see there, and pictures with numbers that are not finite.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    seen = explain(run, cache.path, clip_id, which)
    title = written(blank(44), (10, 10), f"what {run.path.name or run.path} sees", INK, 16)
    answer = f"; answers {seen.answer}" * bool(seen.answer)
    title = written(
        title, (_RIGHT - 420, 14), f"{run.settings.method}, {which} weights of {seen.stage}{answer}", FAINT, 12
    )
    return np.concatenate([title, *(row(picture, seen) for picture in seen.pictures)])


def row(picture: Shown, seen: Explanation) -> Picture:
    """One picture: maps as heat, alone or over the frames, or a curve."""
    values = picture.values.detach().float().cpu().numpy()
    if values.ndim not in (1, 3) or not values.size:
        raise ValueError(f"picture {picture.title!r} has values of shape {values.shape}: give [T, h, w] or [T]")
    if not np.isfinite(values).all():
        raise OptionError(f"Picture {picture.title!r} has values that are not finite: see its losses in metrics.csv.")
    at = spread(len(seen.numbers), len(values)) if len(seen.numbers) and picture.in_time else np.empty(0, np.int64)
    numbers = seen.numbers[at]
    if values.ndim == 1:
        return _margin(curve(values, numbers, picture.scale), picture)
    low, high = picture.scale or (float(values.min()), float(values.max()))
    size = seen.frames.shape[1:3] if seen.frames is not None else (THUMB, THUMB)
    share = heat(values, low, high, size)
    colours = heat_colours(np.round(255 * share).astype(np.uint8))
    if picture.over and seen.frames is not None:
        colours = blend(seen.frames[spread(len(seen.frames), len(values))], colours, share)
    strip = Strip("", colours, numbers, order=0, legend=_scale(low, high))
    return _margin(band_of(strip), picture)


def spread(count: int, length: int) -> NDArray[np.int64]:
    """Which of ``count`` frames stand for each of ``length`` time steps."""
    return np.linspace(0, count - 1, length).round().astype(np.int64)


def heat(values: NDArray[np.float32], low: float, high: float, size: tuple[int, int]) -> NDArray[np.float32]:
    """Maps [T, h, w] as shares of the way from ``low`` to ``high``, 0 to 1, brought smoothly to ``size`` (H, W)."""
    shares = np.clip((values - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)
    shrunk = values.shape[1] > size[0] or values.shape[2] > size[1]
    how = cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR
    return np.stack([cv2.resize(share, size[::-1], interpolation=how) for share in shares]).astype(np.float32)


def blend(frames: NDArray[np.uint8], colours: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Frames [T, H, W, 3] under colours that are the more opaque the hotter they are."""
    weight = OPACITY * share[..., None]
    return np.round((1 - weight) * frames + weight * colours).astype(np.uint8)


def curve(values: NDArray[np.float32], numbers: NDArray[np.int32], scale: tuple[float, float] | None = None) -> Picture:
    """A line over the columns of the rows of maps [T], with values below and the ends of its axis at its right.

    ``scale``: these ends; none: 0 and the largest value."""
    picked = thumbnails(len(values))
    places = LEFT + np.arange(len(picked)) * (THUMB + GAP) + THUMB / 2
    low, high = scale or (min(0.0, float(values.min())), max(0.0, float(values.max())))
    x = np.interp(np.arange(len(values)), picked, places)
    y = _HEIGHT - 10 - (_HEIGHT - 24) * ((values - low) / (high - low) if high > low else np.full(len(values), 0.5))
    image = Image.fromarray(blank(_HEIGHT + 24))
    draw = ImageDraw.Draw(image)
    draw.line([(LEFT, _HEIGHT), (_RIGHT - GAP, _HEIGHT)], fill=FAINT)
    for at, end in ((14, high), (_HEIGHT - 10, low)):
        draw.text((_RIGHT + GAP, at - 6), f"{end:.4g}", fill=FAINT, font=font(11))
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=LINES[0], width=3)
    for column, i in enumerate(picked.tolist()):
        draw.ellipse((x[i] - 4, y[i] - 4, x[i] + 4, y[i] + 4), fill=LINES[0])
        label = f"{values[i]:.3f}" + (f"   frame {numbers[i]}" if len(numbers) else "")
        draw.text((LEFT + column * (THUMB + GAP), _HEIGHT + 4), label, fill=INK, font=font(11))
    return np.array(image)


def _scale(low: float, high: float) -> Picture:
    """The colours from hot to cold, with their values."""
    legend = np.full((THUMB, 80, 3), 255, np.uint8)
    legend[8 : THUMB - 8, 4:14] = heat_colours(np.linspace(255, 0, THUMB - 16).astype(np.uint8)[None, :, None])[0]
    image = Image.fromarray(legend)
    draw = ImageDraw.Draw(image)
    draw.text((20, 4), f"{high:.4g}", fill=FAINT, font=font(11))
    draw.text((20, THUMB - 20), f"{low:.4g}", fill=FAINT, font=font(11))
    return np.array(image)


def _margin(band: Picture, picture: Shown) -> Picture:
    """A row with title and note at its left, in lines that fit there."""
    y = 4
    for text, colour, size in ((picture.title, INK, 14), (picture.note, FAINT, 11)):
        for line in _lines(text, size):
            band = written(band, (10, y), line, colour, size)
            y += size + 4
    return band


def _lines(text: str, size: int) -> list[str]:
    lines: list[str] = []
    for word in spelled(text).split():
        if lines and font(size).getlength(f"{lines[-1]} {word}") <= LEFT - 16:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def spelled(text: str) -> str:
    """Greek letters by name, for the font has none: ``α_t`` as ``alpha_t``."""
    return "".join(unicodedata.name(c).split()[-1].lower() if "α" <= c <= "ω" else c for c in text)
