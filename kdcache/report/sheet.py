"""``kdcache show``: one clip's streams as a picture, each row one stream over time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.report.strips import FAINT, GAP, INK, LEFT, LINES, THUMB, Picture, band_of, blank, font, written
from kdcache.store import Cache
from kdcache.streams.base import COLUMNS, CachedKind, Strip
from kdcache.streams.registry import kind_of

if TYPE_CHECKING:
    from kdcache.runs.run import Run


def show(
    cache: str | os.PathLike[str] | Cache,
    clip_id: str,
    output: str | os.PathLike[str] | None = None,
    run: Run | str | os.PathLike[str] | None = None,
    which: str = "last",
) -> Path:
    """Draw a contact sheet of one clip: frames, flow, trajectories, motion map, feature energy over time.

    Only streams that the cache holds are drawn; trajectories are computed here, from cached ``rgb``. Below them stands
    what a run sees in the clip, as the figures of its method's papers show it.

    Args:
        cache: folder, or an open ``Cache``.
        clip_id: which clip.
        output: PNG to write; default ``sheets/<clip_id>.png``.
        run: a finished run, or its folder, of a method that has such figures. The clip need not be of its splits, nor
            the cache the one that it was trained on, so long as the streams that it reads are of the same recipes.
        which: ``last`` or ``best`` weights of the run.

    Returns:
        The path of the picture.

    Raises:
        OptionError: the cache has no such clip, none of its streams, or none that can be drawn; a run that has not
            finished, whose method has no figures, or that reads what the cache does not hold of the clip.
        WeightsError: weights of the run that are missing or do not fit.
    """
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    picture = sheet(cache, clip_id)
    if run is not None:
        from kdcache.report.run_sheet import run_sheet  # loads torch

        picture = np.concatenate([picture, run_sheet(cache, clip_id, run, which)])
    path = Path(output) if output is not None else Path("sheets", f"{clip_id.replace(os.sep, '_')}.png")
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
    bands += [band_of(strip) for strip in strips]
    curves = {strip.note: strip.curve for strip in strips if strip.curve is not None}
    if curves:
        bands.append(_curves(curves))
    return np.concatenate(bands)


# ---------------------------------------------------------------------------
# rows
# ---------------------------------------------------------------------------


def _curves(curves: dict[str, NDArray[np.float32]]) -> Picture:
    """Energy over time, one line a stream, each scaled to its own peak."""
    height, width = 130, COLUMNS * (THUMB + GAP) - GAP
    image = Image.fromarray(blank(height + 30))
    draw = ImageDraw.Draw(image)
    draw.line([(LEFT, height), (LEFT + width, height)], fill=FAINT)
    draw.line([(LEFT, 8), (LEFT, height)], fill=FAINT)
    for number, (name, curve) in enumerate(curves.items()):
        x = LEFT + np.linspace(0, width, len(curve)) if len(curve) > 1 else np.array([LEFT, LEFT + width])
        y = height - (height - 16) * np.resize(curve, len(x)) / (float(curve.max()) + 1e-12)
        colour = LINES[number % len(LINES)]
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=3)
        draw.text((LEFT + 8 + 220 * number, height + 8), f"{name}: peak {curve.max():.3g}", fill=colour, font=font(12))
    band = np.array(image)
    band = written(band, (10, 4), "feature", INK, 14)
    return written(band, (10, 22), "energy over time", INK, 12)


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
    band = written(blank(64), (10, 8), str(row["clip_id"]), INK, 20)
    return written(band, (10, 38), "   ".join(facts), FAINT, 12)
