"""Camera motion: known homographies recovered, removed from flow and from motion maps of real clips."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kdcache.errors import ClipError
from kdcache.motion._farneback import Farneback, pyramid
from kdcache.motion.camera import FeatureFinder, homography, match, project, warp_back, warped_flow
from kdcache.motion.maps import motion_maps
from kdcache.sources import open_source

SIZE = (100, 120)  # height and width of the window that the moving camera sees
CENTRE = (90.0, 72.0)  # of the window in the still frame, x and y


@pytest.fixture(scope="module")
def waving(shared: Path) -> np.ndarray:
    with open_source(shared / "data" / "weizmann" / "wave2" / "daria_wave2.avi") as source:
        return np.stack(list(source.read(range(32))))


@pytest.fixture(scope="module")
def still(waving: np.ndarray) -> np.ndarray:
    return motion_maps(waving)


def camera(kind: str, t: int, centre: tuple[float, float] = CENTRE, size: tuple[int, int] = SIZE) -> np.ndarray:
    """From pixels of the moving window to pixels of the still frame, ``t`` frames into a sweep of 30."""
    u = 2 * np.pi * t / 30
    dx, dy = (12 * np.sin(u), 6 * np.sin(2 * u)) if kind in ("shift", "all") else (0.0, 0.0)
    zoom = 1 + 0.12 * np.sin(u) if kind in ("zoom", "all") else 1.0
    angle = np.deg2rad(6) * np.sin(u) if kind in ("rotate", "all") else 0.0
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    middle = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    if kind == "all":
        middle[2, :2] = 2e-5 * np.sin(u), 1e-5 * np.cos(u)
    out = np.array([[1, 0, centre[0] + dx], [0, 1, centre[1] + dy], [0, 0, 1]])
    return out @ middle @ np.array([[1, 0, -size[1] / 2], [0, 1, -size[0] / 2], [0, 0, 1]])


def film(
    frames: np.ndarray, moves: list[np.ndarray], interpolation: int = cv2.INTER_LINEAR, size: tuple[int, int] = SIZE
) -> np.ndarray:
    """What the moving camera sees of still ``frames``."""
    flags = interpolation | cv2.WARP_INVERSE_MAP
    warped = [
        cv2.warpPerspective(f, m, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)
        for f, m in zip(frames, moves, strict=True)
    ]
    return np.stack(warped)


def flow_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (a, b)]
    engine = Farneback(*pyramid(*gray[0].shape, 32, 8))
    return np.moveaxis(engine.flow(engine.expand(gray[0]), engine.expand(gray[1]))[0], 0, 2)


def corner_error(found: np.ndarray, true: np.ndarray, h: int, w: int) -> float:
    x, y = np.array([0, w - 1, 0, w - 1.0]), np.array([0, 0, h - 1, h - 1.0])
    return float(np.hypot(*(np.array(project(found, x, y)) - np.array(project(true, x, y)))).max())


@pytest.mark.parametrize("kind", ["shift", "zoom", "rotate", "all"])
def test_known_homographies_are_recovered(waving: np.ndarray, kind: str) -> None:
    moves = [camera(kind, t) for t in range(12)]
    clip = film(waving[:12], moves)
    errors, sizes = [], []
    for t in range(0, 11, 2):
        true = np.linalg.inv(moves[t + 1]) @ moves[t]
        found = homography(clip[t], clip[t + 1], flow_between(clip[t], clip[t + 1]))
        errors.append(corner_error(found, true, *SIZE))
        sizes.append(corner_error(np.eye(3), true, *SIZE))
    assert np.median(sizes) > 0.9
    assert np.median(errors) < 0.5


@pytest.mark.parametrize("kind", ["shift", "zoom", "rotate", "all"])
def test_moving_cameras_leave_the_background_still_and_people_moving(
    waving: np.ndarray, still: np.ndarray, kind: str
) -> None:
    moves = [camera(kind, t) for t in range(len(waving))]
    around = [still[max(0, t - 2) : t + 3].max(axis=0) for t in range(len(still))]
    spread = np.stack([cv2.dilate(m, np.ones((17, 17))) for m in around])
    person = film(still, moves, cv2.INTER_NEAREST) > 0
    background = film(spread, moves, cv2.INTER_NEAREST) == 0
    assert 0.01 < person.mean() < 0.2
    found = motion_maps(film(waving, moves)) > 0
    assert (found & background).sum() <= 0.05 * background.sum()
    assert (found & person).sum() >= 0.65 * person.sum()


def test_warped_flow_removes_the_camera_and_keeps_the_rest() -> None:
    true = np.array([[1.02, 0.01, 3], [-0.01, 0.99, -2], [1e-5, 2e-5, 1]])
    x, y = np.meshgrid(np.arange(50.0), np.arange(40.0))
    px, py = project(true, x, y)
    flow = np.stack([px - x, py - y], axis=2).astype(np.float32)
    left = warped_flow(flow, true)
    assert left.dtype == np.float32
    np.testing.assert_allclose(left, 0, atol=1e-4)
    flow[10:20, 10:20] += (4, 0)
    moved = warped_flow(flow, true)
    assert np.abs(moved[10:20, 10:20, 0] - 4).max() < 0.3
    np.testing.assert_array_equal(moved[25:], left[25:])
    np.testing.assert_allclose(warped_flow(flow, np.eye(3)), flow, atol=1e-5)


def test_people_under_the_mask_have_no_vote() -> None:
    rng = np.random.default_rng(2)
    ground = cv2.GaussianBlur(rng.uniform(0, 255, (96, 160)).astype(np.float32), (0, 0), 1.5)
    crowd = cv2.GaussianBlur(rng.uniform(0, 255, (96, 130)).astype(np.float32), (0, 0), 1.5)
    frames = []
    for t in range(2):
        frame = ground.copy()
        frame[:, :110] = crowd[:, 3 * t : 110 + 3 * t]
        frames.append(np.clip(128 + 3 * (frame - 128), 0, 255).astype(np.uint8))
    flow = np.zeros((96, 160, 2), np.float32)
    flow[:, :110, 0] = -3
    mask = np.zeros((96, 160), bool)
    mask[:, :116] = True
    fooled = homography(frames[0], frames[1], flow)
    right = homography(frames[0], frames[1], flow, mask)
    assert corner_error(fooled, np.eye(3), 96, 160) > 2
    assert corner_error(right, np.eye(3), 96, 160) < 0.5


def test_frames_without_votes_leave_the_camera_still() -> None:
    for shape in ((1, 1), (2, 3), (60, 80)):
        black = np.zeros(shape, np.uint8)
        np.testing.assert_array_equal(homography(black, black, np.zeros((*shape, 2), np.float32)), np.eye(3))
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 80), dtype=np.uint8)
    wild = np.random.default_rng(1).normal(0, 50, (64, 80, 2)).astype(np.float32)
    assert np.isfinite(homography(noise[0], noise[1], wild)).all()
    wild[:] = np.nan
    assert np.isfinite(homography(noise[0], noise[1], wild)).all()


def test_sizes_must_agree() -> None:
    frame = np.zeros((20, 30), np.uint8)
    with pytest.raises(ClipError, match="one size"):
        homography(frame, frame, np.zeros((30, 20, 2), np.float32))
    with pytest.raises(ClipError, match="one size"):
        homography(frame, frame, np.zeros((20, 30, 2), np.float32), np.zeros((20, 31)))
    with pytest.raises(ClipError, match="uint8"):
        homography(frame.astype(np.float32), frame, np.zeros((20, 30, 2), np.float32))


def test_warping_back_undoes_a_shift_and_keeps_the_unseen_border() -> None:
    rng = np.random.default_rng(0)
    world = rng.integers(0, 256, (60, 90), dtype=np.uint8)
    prev, next = world[:, :80], world[:, 3:83]  # the camera pans right: points move 3 px to the left
    back = warp_back(prev, next, np.array([[1, 0, -3], [0, 1, 0], [0, 0, 1.0]]))
    np.testing.assert_array_equal(back, prev)
    other = rng.integers(0, 256, (60, 80), dtype=np.uint8)
    mixed = warp_back(other, next, np.array([[1, 0, -3], [0, 1, 0], [0, 0, 1.0]]))
    np.testing.assert_array_equal(mixed[:, :9], other[:, :9])
    np.testing.assert_array_equal(mixed[6:-6, 9:77], prev[6:-6, 9:77])


def test_surf_follows_a_shift_and_a_quarter_turn(waving: np.ndarray) -> None:
    gray = cv2.cvtColor(waving[0], cv2.COLOR_RGB2GRAY)
    gray = cv2.resize(gray, None, fx=2, fy=2)
    find = FeatureFinder("surf")
    whole = find(gray, None)
    assert len(whole.points) > 100
    np.testing.assert_allclose(np.linalg.norm(whole.descriptors, axis=1), 1, atol=1e-5)
    a, b = match(find(gray[:-8, :-8], None), find(gray[8:, 8:], None))
    assert np.mean(np.abs(a - b - 8).max(axis=1) < 0.1) > 0.9
    turned = find(np.ascontiguousarray(np.rot90(gray)), None)
    distance = np.linalg.norm(whole.descriptors[:, None] - turned.descriptors[None], axis=2)
    near = distance.argmin(axis=1)
    expected = np.stack([whole.points[:, 1], gray.shape[1] - 1 - whole.points[:, 0]], axis=1)
    assert np.mean(np.abs(turned.points[near] - expected).max(axis=1) < 1) > 0.8
    half = np.zeros_like(gray)
    half[:, : gray.shape[1] // 2] = 1
    assert find(gray, half).points[:, 0].max() < gray.shape[1] / 2 + 40
