"""Improved dense trajectories: against the original program's output, against OpenCV, and on bad input."""

from __future__ import annotations

import gzip
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from kdcache.errors import ClipError, OptionError
from kdcache.motion._farneback import Farneback, pyramid
from kdcache.motion.idt import IDTParams, Tracker, draw_trajectories, to_columns, trajectories
from kdcache.sources import open_source

BLOCKS = {"displacement": (10, 40), "hog": (40, 136), "hof": (136, 244), "mbhx": (244, 340), "mbhy": (340, 436)}


@pytest.fixture(scope="module")
def boxing(shared: Path) -> np.ndarray:
    with open_source(shared / "data" / "idt" / "person01_boxing_d1.avi") as source:
        return np.stack(list(source.read(range(len(source.times)))))


@pytest.fixture(scope="module")
def original(shared: Path) -> np.ndarray:
    with gzip.open(shared / "data" / "idt" / "person01_boxing_d1.improved.gz", "rt") as file:
        return np.loadtxt(file)


@pytest.fixture(scope="module")
def ours(boxing: np.ndarray) -> pd.DataFrame:
    return trajectories(boxing, descriptors=True)


def square_clip(frames: int = 24, shift: tuple[float, float] = (2.0, 1.0)) -> np.ndarray:
    """A textured 40-px square that moves over a still, textured background."""
    rng = np.random.default_rng(5)
    ground = cv2.GaussianBlur(rng.uniform(0, 255, (96, 128)).astype(np.float32), (0, 0), 1.5)
    patch = cv2.GaussianBlur(rng.uniform(0, 255, (40, 40)).astype(np.float32), (0, 0), 1.5)
    out = np.stack([ground] * frames)
    for t, frame in enumerate(out):
        x, y = int(20 + shift[0] * t), int(20 + shift[1] * t)
        frame[y : y + 40, x : x + 40] = patch
    out = 128 + 3 * (out - 128)
    return np.repeat(np.clip(out, 0, 255).astype(np.uint8)[..., None], 3, axis=3)


def pair_up(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Index pairs of rows with the same end frame and scale and mean positions within 1 px, nearest first."""
    groups = defaultdict(list)
    for j, row in enumerate(b):
        groups[int(row[0]), round(float(row[6]), 3)].append(j)
    pairs = [
        (float(np.hypot(*(row[1:3] - b[j, 1:3]))), i, j)
        for i, row in enumerate(a)
        for j in groups[int(row[0]), round(float(row[6]), 3)]
    ]
    left, right, out = set(), set(), []
    for distance, i, j in sorted(pairs):
        if distance <= 1 and i not in left and j not in right:
            left.add(i)
            right.add(j)
            out.append((i, j))
    return np.array(out)


def test_agrees_with_the_original_program(ours: pd.DataFrame, original: np.ndarray) -> None:
    columns = to_columns(ours)
    assert columns.shape[1] == 436
    assert columns.dtype == np.float32
    pairs = pair_up(columns, original)
    f1 = 2 * len(pairs) / (len(columns) + len(original))
    assert f1 >= 0.999
    gap = np.abs(columns[pairs[:, 0]] - original[pairs[:, 1]])
    assert np.quantile(gap[:, :10].max(axis=1), 0.99) < 1e-3
    for name, (first, last) in BLOCKS.items():
        within = (gap[:, first:last].max(axis=1) <= 0.01).mean()
        assert within >= 0.99, name
    assert np.median(gap[:, 40:136].max(axis=1)) < 1e-5  # HOG depends on no homography


def test_points_are_the_last_fifteen_of_the_track(ours: pd.DataFrame) -> None:
    points, start = np.stack(ours["points"]), np.stack(ours["start"])
    assert points.shape == (len(ours), 15, 2)
    path = np.concatenate([start[:, None], points], axis=1)
    np.testing.assert_allclose(path.mean(axis=1), ours[["mean_x", "mean_y"]], atol=1e-3)
    np.testing.assert_allclose(path.std(axis=1), ours[["var_x", "var_y"]], atol=1e-3)
    grid = start / ours["scale"].to_numpy()[:, None]
    np.testing.assert_allclose((grid - 2) / 5, np.round((grid - 2) / 5), atol=1e-4)  # sampled at 5 j + 2 of its scale
    steps = np.linalg.norm(np.stack(ours["displacements"]), axis=2).sum(axis=1)
    np.testing.assert_allclose(steps, 1, atol=1e-4)


def test_the_finest_flow_is_opencvs() -> None:
    clip = square_clip()[..., 0]
    engine = Farneback(*pyramid(96, 128, 32, 1))
    ours = engine.flow(engine.expand(clip[0]), engine.expand(clip[1]))[0]
    flags = cv2.OPTFLOW_FARNEBACK_GAUSSIAN
    theirs = cv2.calcOpticalFlowFarneback(clip[0], clip[1], None, 0.5, 0, 10, 2, 7, 1.5, flags)
    for c in range(2):
        np.testing.assert_allclose(ours[c], cv2.medianBlur(np.ascontiguousarray(theirs[..., c]), 5), atol=2e-3)


def test_a_moving_square_is_tracked_and_its_still_ground_is_not() -> None:
    table = trajectories(square_clip())
    assert len(table) > 50
    far = []  # distance outside the square, px
    for start, points, end in zip(table["start"], table["points"], table["end_frame"], strict=True):
        corner = np.array([20.0, 20.0]) + np.array([2.0, 1.0]) * (end - 15)
        far.append(np.maximum(corner - start, start - corner - 40).max())
        if far[-1] < -12 and table["scale"].iloc[len(far) - 1] == 1:
            np.testing.assert_allclose(points[-1] - start, [30, 15], atol=1.5)
    assert min(far) < -12
    assert np.median(far) < 8
    assert max(far) < 26  # flow bleeds over the edge by its window and its coarser scales, as in the original


def test_same_bytes_with_other_seeds_threads_and_when_streamed(boxing: np.ndarray) -> None:
    clip, threads = boxing[:24], cv2.getNumThreads()
    first = to_columns(trajectories(clip, descriptors=True))
    assert len(first) > 20
    try:
        cv2.setRNGSeed(77)
        cv2.setNumThreads(1)
        second = to_columns(trajectories(clip, descriptors=True))
    finally:
        cv2.setNumThreads(threads)
    assert first.tobytes() == second.tobytes()
    tracker = Tracker(120, 160)
    streamed = np.concatenate([f.stats[:, :2] for frame in clip for f in tracker.push(frame)])
    np.testing.assert_array_equal(streamed, first[:, 1:3])
    np.testing.assert_array_equal(to_columns(trajectories(clip[:, :, ::-1][:, :, ::-1], descriptors=True)), first)


def test_grey_clips_equal_rgb_ones(boxing: np.ndarray) -> None:
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in boxing[:20]])
    pd.testing.assert_frame_equal(trajectories(gray), trajectories(boxing[:20]))


def test_frames_may_come_in_one_array_that_is_written_over(boxing: np.ndarray) -> None:
    """As decoders give them; what was returned stays as it was, too."""
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in boxing[:24]])
    for clip in (gray, boxing[:24]):
        buffer, trackers = np.empty_like(clip[0]), (Tracker(120, 160), Tracker(120, 160))
        found: list[list[np.ndarray]] = [[], []]
        for frame in clip:
            buffer[:] = frame
            for kept, tracker, each in zip(found, trackers, (frame, buffer), strict=True):
                kept += [array for f in tracker.push(each) for array in (f.points, f.moves)]
        assert len(found[0]) > 0
        np.testing.assert_equal(found[1], found[0])


SHAPES = [(1, 48, 64, 3), (15, 40, 40, 3), (18, 1, 1, 3), (18, 2, 3, 3), (18, 31, 17), (18, 37, 51, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "black", "same", "cuts"])
def test_awkward_clips_give_finite_tables(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(1)
    clip = np.zeros(shape, np.uint8)
    if kind == "noise":
        clip = rng.integers(0, 256, shape, dtype=np.uint8)
    elif kind == "same":
        clip[:] = rng.integers(0, 256, shape[1:], dtype=np.uint8)
    elif kind == "cuts":
        clip[::2], clip[1::2] = 255, rng.integers(0, 256, shape[1:], dtype=np.uint8)
    table = trajectories(clip, descriptors=min(shape[1:3]) >= 32)
    assert list(table.columns[:4]) == ["end_frame", "mean_x", "mean_y", "var_x"]
    for name in table.columns:
        assert np.isfinite(np.array(table[name].to_list(), np.float64)).all(), name
    if kind in ("black", "same") or shape[0] < 16:
        assert len(table) == 0
    if "hog" in table:
        assert to_columns(table).shape == (len(table), 436)


def test_a_real_cut_stays_finite(boxing: np.ndarray) -> None:
    clip = np.concatenate([boxing[:18], 255 - boxing[100:118, ::-1]])
    columns = to_columns(trajectories(clip, descriptors=True))
    assert len(columns)
    assert np.isfinite(columns).all()


def test_bad_input_is_refused_in_one_sentence() -> None:
    with pytest.raises(ClipError, match="uint8"):
        trajectories(np.zeros((3, 40, 40, 3), np.float32))
    with pytest.raises(ClipError, match="no pixels"):
        trajectories(np.zeros((0, 40, 40, 3), np.uint8))
    with pytest.raises(ClipError, match="32-pixel window"):
        trajectories(np.zeros((3, 31, 40, 3), np.uint8), descriptors=True)
    with pytest.raises(ClipError, match="mask"):
        trajectories(np.zeros((3, 40, 40, 3), np.uint8), mask=np.zeros((40, 41), bool))
    with pytest.raises(OptionError, match="length"):
        IDTParams(length=0)
    with pytest.raises(OptionError, match="multiple of 3"):
        trajectories(np.zeros((3, 40, 40, 3), np.uint8), IDTParams(length=10), descriptors=True)
    with pytest.raises(OptionError, match="surf"):
        trajectories(np.zeros((3, 40, 40, 3), np.uint8), IDTParams(features="surv"))
    with pytest.raises(OptionError, match="checked"):
        IDTParams(camera="chequed")
    with pytest.raises(OptionError, match="descriptors=True"):
        to_columns(trajectories(np.zeros((3, 40, 40, 3), np.uint8)))
    tracker = Tracker(40, 40)
    tracker.push(np.zeros((40, 40), np.uint8))
    with pytest.raises(ClipError, match="Frame 1"):
        tracker.push(np.zeros((40, 41), np.uint8))


def test_drawing_marks_heads_red_and_leaves_the_rest() -> None:
    table = pd.DataFrame({
        "end_frame": [20], "start": [np.array([10, 10], np.float32)],
        "points": [np.stack([10 + 2 * np.arange(1, 16), np.full(15, 10)], axis=1).astype(np.float32)],
    })  # fmt: skip
    frame = np.full((30, 60, 3), 90, np.uint8)
    drawn = draw_trajectories(frame, table, 10)  # five steps after its start in frame 5
    assert (drawn[10, 20] == [255, 0, 0]).all()
    assert drawn[10, 16, 1] > drawn[10, 16, 0]
    assert (drawn[10, 26:] == 90).all()
    assert (frame == 90).all()
    for elsewhere in (4, 21):
        np.testing.assert_array_equal(draw_trajectories(frame, table, elsewhere), frame)
