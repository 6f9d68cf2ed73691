"""A small synthetic first-person data set: a hand reaches for an object and does one of six things with it.

Object, colours, place, table and camera shake are drawn at random and say nothing about the class; only the hand's
motion does. Before the contact there is a hint of what is to come (the side from which the hand approaches, its
speed, its tilt), which holds in most clips, not in all: anticipation is possible but not certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.files import atomic
from kdcache.manifest import write_manifest

CLASSES = ("push left", "push right", "lift", "lower", "turn", "shake")
WIDTH, HEIGHT, FPS, FRAMES = 160, 120, 15, 48
CONTACT = 20  # frame at which hand and object meet: what lies before is observed, the rest is the action
_MARGIN = 24  # the camera shakes within a canvas that is larger by this many pixels on each side
_HINT = 0.85  # share of clips whose approach tells the class

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Pose:
    """Where things are at one moment: object and hand in pixels, angles in degrees."""

    thing: tuple[float, float]
    turn: float
    hand: tuple[float, float]
    tilt: float


def make_dataset(folder: Path, clips_per_class: int = 12, seed: int = 0) -> pd.DataFrame:
    """Render the videos and write ``clips.csv``: anticipation pairs, a third of each class held out.

    Raises:
        OptionError: the folder holds the videos of another seed.

    Returns:
        The manifest: two rows a video, ``observed`` (before the contact) and ``action``.
    """
    mark = folder / "seed"
    if mark.exists() and mark.read_text() != str(seed):
        raise OptionError(
            f"{folder} holds the videos of seed {mark.read_text()}: choose another folder for seed {seed}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(str(seed))
    rows: list[dict[str, Any]] = []
    contact_s, stop_s = CONTACT / FPS, FRAMES / FPS
    for label, name in enumerate(CLASSES):
        for number in range(clips_per_class):
            clip = f"{name.replace(' ', '-')}-{number:02d}"
            path = folder / "videos" / f"{clip}.mp4"
            if not path.exists():
                rng = np.random.default_rng([seed, label, number])
                _write_video(path, render(label, rng))
            common = {
                "source": f"videos/{clip}.mp4",
                "label": label,
                "class": name,
                "pair": clip,
                "split": "validation" if number % 3 == 2 else "train",
            }
            rows.append(
                {"clip_id": f"{clip}-observed", "start_s": 0.0, "stop_s": contact_s, "role": "observed", **common}
            )
            rows.append(
                {"clip_id": f"{clip}-action", "start_s": contact_s, "stop_s": stop_s, "role": "action", **common}
            )
    manifest = pd.DataFrame(rows)
    write_manifest(manifest, folder / "clips.csv")
    return manifest


def render(label: int, rng: np.random.Generator) -> Image:
    """One clip of a class: uint8 [48, 120, 160, 3] RGB."""
    table = _table(rng)
    colour, skin = (
        rng.integers(40, 230, 3).tolist(),
        (np.array([224, 172, 140]) * rng.uniform(0.6, 1.1)).clip(0, 255).tolist(),
    )
    shape, size = int(rng.integers(3)), rng.uniform(11, 16)
    poses = _motion(label, rng)
    shake = _shake(rng)
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for t, pose in enumerate(poses):
        canvas = table.copy()
        _draw_thing(canvas, pose, colour, shape, size)
        _draw_hand(canvas, pose, skin)
        frames[t] = cv2.warpAffine(canvas, shake[t], (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    return np.clip(frames + rng.normal(0, 2, frames.shape), 0, 255).astype(np.uint8)


def _motion(label: int, rng: np.random.Generator) -> list[Pose]:
    """Object and hand over time; the approach hints at the class, the action is the class."""
    told = label if rng.random() < _HINT else int(rng.integers(len(CLASSES)))
    start = np.array([_MARGIN + WIDTH * rng.uniform(0.35, 0.65), _MARGIN + HEIGHT * rng.uniform(0.45, 0.6)])
    side = {0: 20.0, 1: -20.0}.get(told, 0.0)
    grip = np.array([side, 6.0 if told in (0, 1) else -12.0 if told == 2 else 16.0])
    enter = np.array([_MARGIN + WIDTH * rng.uniform(0.3, 0.7), 2 * _MARGIN + HEIGHT + 20.0])
    haste = 1.8 if told == 5 else 1.0
    height = 34.0 if label == 3 else 0.0  # what is lowered hangs in the air until then
    span = float(rng.uniform(0.8, 1.2))
    poses = []
    for t in range(FRAMES):
        near = min(1.0, haste * t / CONTACT)
        near = near * near * (3 - 2 * near)
        done = max(0.0, (t - CONTACT) / (FRAMES - CONTACT)) * span
        move, turn = np.zeros(2), 0.0
        if label in (0, 1):
            move = np.array([(-46.0 if label == 0 else 46.0) * done, 0.0])
        elif label == 2:
            move = np.array([0.0, -44.0 * done])
        elif label == 3:
            move = np.array([0.0, -height * max(0.0, 1 - done)])
        elif label == 4:
            turn = 150.0 * done
        elif done > 0:
            move = np.array([9.0 * np.sin(1.6 * t), 3.0 * np.cos(1.6 * t)])
        thing = start + move
        rest = thing + grip
        hand = enter + (rest - enter) * near
        tilt = turn + (18.0 * np.sin(0.8 * t) * (1 - done) if told == 4 else 0.0)
        poses.append(Pose((thing[0], thing[1]), turn, (hand[0], hand[1]), tilt))
    return poses


def _table(rng: np.random.Generator) -> Image:
    """A textured table top with a few things lying about."""
    height, width = HEIGHT + 2 * _MARGIN, WIDTH + 2 * _MARGIN
    grain = cv2.resize(
        rng.normal(0, 1, (height // 6, width // 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    light = np.linspace(0.8, 1.15, height, dtype=np.float32)[:, None]
    base = rng.uniform(90, 170) * np.array([1.0, rng.uniform(0.75, 1), rng.uniform(0.55, 0.95)])
    table = np.clip((base + 12 * grain[..., None]) * light[..., None], 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(2, 5))):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height * 0.5)))
        cv2.circle(table, centre, int(rng.uniform(4, 10)), rng.integers(30, 240, 3).tolist(), -1, cv2.LINE_AA)
    return table


def _shake(rng: np.random.Generator) -> list[NDArray[Any]]:
    """Head motion: a smooth wander of a few pixels and degrees."""
    wander = cv2.GaussianBlur(np.cumsum(rng.normal(0, 1, (FRAMES, 3)), axis=0), (1, 9), 2.5)
    wander = (wander - wander.mean(axis=0)) / (np.abs(wander - wander.mean(axis=0)).max(axis=0) + 1e-6)
    middle = (WIDTH / 2 + _MARGIN, HEIGHT / 2 + _MARGIN)
    steps = []
    for x, y, angle in wander * np.array([7.0, 5.0, 2.5]):
        matrix = cv2.getRotationMatrix2D(middle, float(angle), 1.0)
        matrix[:, 2] += (x - _MARGIN, y - _MARGIN)
        steps.append(matrix)
    return steps


def _draw_thing(canvas: Image, pose: Pose, colour: list[int], shape: int, size: float) -> None:
    x, y = pose.thing
    dark = [int(c * 0.55) for c in colour]
    if shape == 0:  # box
        corners = cv2.boxPoints(((x, y), (size * 1.9, size * 1.4), pose.turn)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], colour, cv2.LINE_AA)
        cv2.polylines(canvas, [corners], True, dark, 2, cv2.LINE_AA)
    elif shape == 1:  # pan
        cv2.ellipse(canvas, ((x, y), (size * 1.9, size * 1.7), pose.turn), colour, -1, cv2.LINE_AA)
        way = np.deg2rad(pose.turn - 35)
        end = (int(x + 2.1 * size * np.cos(way)), int(y + 2.1 * size * np.sin(way)))
        cv2.line(canvas, (int(x), int(y)), end, dark, 4, cv2.LINE_AA)
    else:  # cup with a handle
        cv2.ellipse(canvas, ((x, y), (size * 1.5, size * 1.5), 0), colour, -1, cv2.LINE_AA)
        cv2.ellipse(canvas, ((x, y), (size * 0.9, size * 0.9), 0), dark, -1, cv2.LINE_AA)
        way = np.deg2rad(pose.turn)
        handle = (int(x + size * np.cos(way)), int(y + size * np.sin(way)))
        cv2.circle(canvas, handle, int(size * 0.4), dark, 2, cv2.LINE_AA)


def _draw_hand(canvas: Image, pose: Pose, skin: list[float]) -> None:
    x, y = pose.hand
    height = canvas.shape[0]
    sleeve = [int(c * 0.4) for c in skin]
    cv2.line(canvas, (int(x), int(y) + 8), (int(x + 0.25 * (height - y)), height + 20), sleeve, 15, cv2.LINE_AA)
    cv2.line(canvas, (int(x), int(y)), (int(x + 0.08 * (height - y)), int(y + 22)), skin, 12, cv2.LINE_AA)
    cv2.ellipse(canvas, ((x, y), (15.0, 18.0), pose.tilt), skin, -1, cv2.LINE_AA)
    for spread in (-38, -14, 10, 34):
        way = np.deg2rad(pose.tilt + spread - 90)
        tip = (int(x + 15 * np.cos(way)), int(y + 15 * np.sin(way)))
        cv2.line(canvas, (int(x), int(y)), tip, skin, 4, cv2.LINE_AA)


def _write_video(path: Path, frames: Image) -> None:
    """Encode RGB frames as H.264; the same frames give the same file."""
    import av

    with atomic(path) as temporary:
        with av.open(str(temporary), "w", format="mp4") as container:
            # Without the last option x264's choices depend on what lies in memory beside the frame.
            options = {"crf": "18", "threads": "1", "x264-params": "cpu-independent=1"}
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
