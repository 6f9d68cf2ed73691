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

Picture = NDArray[np.uint8]  # [H, W, 3] RGB

COLUMNS, THUMB, GAP, LEFT = 8, 150, 6, 118
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
    data = {s: cache.read(s, [clip_id])[0] for s in held}
    frames = {s: np.asarray(cache.frames(s, [clip_id])[0]) for s in held}
    bands = [_title({str(k): v for k, v in rows.iloc[0].items()}, cache.origin([clip_id])[0])]
    if "rgb" in data:
        bands.append(_strip("frames", data["rgb"], frames["rgb"]))
    for name in ("flow", "flow-warped"):
        if name in data and len(data[name]):
            bands.append(_flow_strip(name, data[name], frames[name], cache.recipe(name)))
    if "rgb" in data and len(data["rgb"]) > 1:
        bands.append(_strip("trajectories", _tracks(data["rgb"]), frames["rgb"]))
    if "idt" in data:
        bands.append(_strip("motion map", np.repeat(data["idt"][..., None], 3, axis=-1), frames["idt"]))
    maps = {s: data[s][0].astype(np.float32) for s in held if data[s].ndim == 5}
    bands += [_energy_strip(name, m, frames[name]) for name, m in maps.items()]
    if maps:
        bands.append(_curves({name: _energy(m).mean(axis=(1, 2)) for name, m in maps.items()}))
    if len(bands) == 1 and all("skeleton" in cache.recipe(s) for s in held):
        raise OptionError(
            f"{cache.path}: of clip {clip_id!r} there are only features of a skeleton ({', '.join(held)}), and caches "
            "keep no joints: there is nothing to draw."
        )
    if len(bands) == 1:
        raise OptionError(
            f"{cache.path}: of clip {clip_id!r} there is only {', '.join(held)}, which is no picture; "
            "extract rgb, flow, idt or a feature map such as i3d-rgb/mixed4a too."
        )
    return np.concatenate(bands)


def _tracks(rgb: Picture) -> Picture:
    """Trajectories that end at each frame or later, drawn over the frames."""
    from kdcache.motion import trajectories
    from kdcache.motion.idt import draw_trajectories

    table = trajectories(rgb)
    picked = _pick(len(rgb))
    out = np.zeros_like(rgb)
    for t in picked:
        out[t] = draw_trajectories(rgb[t], table, int(t))
    return out


def _energy(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean square over channels of a map [C, T, H, W], or [T, C, H, W] from a frame-wise backbone: [T, H, W]."""
    if features.shape[0] < features.shape[1]:  # there are more channels than time steps
        features = features.swapaxes(0, 1)
    return np.asarray(np.square(features).mean(axis=0), np.float32)


# ---------------------------------------------------------------------------
# rows
# ---------------------------------------------------------------------------


def _pick(count: int) -> NDArray[np.int64]:
    """Up to ``COLUMNS`` positions spread over a strip."""
    return np.unique(np.linspace(0, count - 1, COLUMNS).round().astype(np.int64))


def _thumb(image: Picture) -> Picture:
    height, width = image.shape[:2]
    size = (THUMB, max(1, round(height * THUMB / width)))
    shrink = width > THUMB
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_NEAREST), np.uint8)


def _strip(
    name: str, images: Picture, frames: NDArray[np.int32], note: str = "", extra: Picture | None = None
) -> Picture:
    """One labelled row of thumbnails with their source frame numbers."""
    picked = _pick(len(images))
    thumbs = [_thumb(images[i]) for i in picked]
    band = _blank(thumbs[0].shape[0] + 24)
    for column, (i, thumb) in enumerate(zip(picked, thumbs, strict=True)):
        x = LEFT + column * (THUMB + GAP)
        band[: thumb.shape[0], x : x + THUMB] = thumb
        if len(frames):  # imported features may not tell
            number = frames[min(int(i), len(frames) - 1)]
            band = _text(band, (x, thumb.shape[0] + 3), f"frame {number}", _FAINT, 11)
    if extra is not None:
        x = LEFT + COLUMNS * (THUMB + GAP)
        band[: extra.shape[0], x : x + extra.shape[1]] = extra[: band.shape[0]]
    band = _text(band, (10, 4), name, _INK, 14)
    return _text(band, (10, 24), note, _FAINT, 11)


def _flow_strip(name: str, stored: NDArray[Any], frames: NDArray[np.int32], recipe: dict[str, Any]) -> Picture:
    from kdcache.motion.flow_image import colour_wheel, dequantise, legend

    flow = dequantise(stored, recipe["bound"]) if stored.dtype == np.uint8 else stored.astype(np.float32)
    peak = max(1.0, float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 99)))
    images = np.stack([colour_wheel(f, peak) for f in flow])
    return _strip(name, images, frames, f"rim = {peak:.1f} px", legend(80))


def _energy_strip(name: str, features: NDArray[np.float32], frames: NDArray[np.int32]) -> Picture:
    energy = _energy(features)
    scaled = (255 * np.clip(energy / (np.percentile(energy, 99.5) + 1e-12), 0, 1)).astype(np.uint8)
    images = np.stack([cv2.cvtColor(cv2.applyColorMap(e, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB) for e in scaled])
    at = frames[np.linspace(0, len(frames) - 1, len(images)).round().astype(int)] if len(frames) else frames
    return _strip("energy", images, at, name)


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
