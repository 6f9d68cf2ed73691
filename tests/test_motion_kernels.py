"""The compiled loops of trajectories against the same sums written plainly in numpy, at sizes that leave remainders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from kdcache.motion import _farneback_kernels, _histogram_kernels
from kdcache.motion._farneback import Farneback
from kdcache.motion._farneback_update import BLUR, iterate
from kdcache.motion._surf_descriptor import nearest
from kdcache.motion.median import median3, median5

SIZES = [(37, 43), (16, 16), (7, 9), (1, 12), (12, 1), (3, 2)]


def _sampled(planes, x, y):
    """Bilinear samples [c] of ``planes [c, h, w]``; None outside."""
    _, h, w = planes.shape
    if not (0 <= x < w - 1 and 0 <= y < h - 1):
        return None
    j, i = int(x), int(y)
    dx, dy = x - j, y - i
    over, under = planes[:, i], planes[:, i + 1]
    return (1 - dy) * ((1 - dx) * over[:, j] + dx * over[:, j + 1]) + dy * (
        (1 - dx) * under[:, j] + dx * under[:, j + 1]
    )


def _plain_iteration(a, b, flow, fade_x, fade_y, taps):
    _, h, w = a.shape
    m = np.zeros((5, h, w))
    for y in range(h):
        for x in range(w):
            there = _sampled(b, x + flow[0, y, x], y + flow[1, y, x]) if h > 1 and w > 1 else None
            mean = a[:, y, x] / 2 + there / 2 if there is not None else a[:, y, x]
            before = 0 if there is None else there
            by, bx = (a[:2, y, x] - (before if there is None else there[:2])) / 2
            ayy, axx, axy = mean[2], mean[3], mean[4] / 2
            s = fade_x[x] * fade_y[y]
            by, bx = (
                (by + ayy * flow[1, y, x] + axy * flow[0, y, x]) * s,
                (bx + axy * flow[1, y, x] + axx * flow[0, y, x]) * s,
            )
            ayy, axx, axy = ayy * s, axx * s, axy * s
            m[:, y, x] = (
                ayy**2 + axy**2, (ayy + axx) * axy, axx**2 + axy**2, ayy * by + axy * bx, axy * by + axx * bx
            )  # fmt: skip
    kernel = np.concatenate([taps[:0:-1], taps])
    padded = np.pad(m, ((0, 0), (BLUR, BLUR), (BLUR, BLUR)), mode="edge")
    rows = sum(k * padded[:, i : i + h] for i, k in enumerate(kernel))
    s = sum(k * rows[:, :, i : i + w] for i, k in enumerate(kernel))
    det = s[0] * s[2] - s[1] ** 2 + 1e-3
    return np.stack([(s[0] * s[4] - s[1] * s[3]) / det, (s[2] * s[3] - s[1] * s[4]) / det])


@pytest.mark.parametrize("size", SIZES)
def test_an_iteration_is_that_of_the_paper(size):
    h, w = size
    rng = np.random.default_rng(h * w)
    flow = rng.uniform(-3, 3, (2, h, w)).astype(np.float32)
    solver = Farneback([1.0], [size])
    images = [rng.integers(0, 256, size).astype(np.uint8) for _ in range(2)]
    first, second = (solver.expand(image)[0] for image in images)
    planes = second.pixels[: h * w, :5].reshape(h, w, 5).transpose(2, 0, 1)
    np.testing.assert_array_equal(planes, second.planes)
    fades, taps = solver._fades[0], solver._taps
    plain = _plain_iteration(first.planes, planes, flow, *fades, taps)
    iterate(first.planes, second.pixels, flow, *fades, taps)
    np.testing.assert_allclose(flow, plain, rtol=2e-3, atol=2e-3)


def test_the_expansion_of_a_parabola_is_exact():
    y, x = np.mgrid[:40, :50] - np.float32(20)
    image = (0.5 * x * x - 0.25 * y * y + 0.125 * x * y + 3 * x - 2 * y).astype(np.float32)
    solver = Farneback([1.0], [image.shape])
    out, pixels = solver.expansions()[0]
    _farneback_kernels.expand(image, solver._expanding, out, pixels)
    inner = (slice(8, -8), slice(8, -8))
    expected = [-0.5 * y + 0.125 * x - 2, x + 0.125 * y + 3, -0.25 + 0 * x, 0.5 + 0 * x, 0.125 + 0 * x]
    for plane, values in zip(out, expected, strict=True):
        np.testing.assert_allclose(plane[inner], values[inner], atol=2e-3)


def _plain_histogram(x, y, quiet, left, top, bins):
    """Cells of 2 × 2 (x outer) of one patch, square roots of shares, by one vector after the other."""
    cells = np.zeros((2, 2, bins))
    for j in range(32):
        for i in range(32):
            vx, vy = float(x[top + j, left + i]), float(y[top + j, left + i])
            length, angle = np.hypot(vx, vy), np.degrees(np.arctan2(vy, vx)) % 360
            if bins == 9 and length <= quiet:
                cells[i // 16, j // 16, 8] += 1
                continue
            place = angle * 8 / 360
            low = int(place)
            cells[i // 16, j // 16, low % 8] += length * (1 - (place - low))
            cells[i // 16, j // 16, (low + 1) % 8] += length * (place - low)
    cells = cells.ravel() + 0.05
    return np.sqrt(cells / cells.sum())


@pytest.mark.parametrize("kind", ["hog", "hof"])
def test_histograms_are_sums_over_patches(kind):
    rng = np.random.default_rng(3)
    h, w, n, bins = 45, 61, 12, 9 if kind == "hof" else 8
    field = rng.normal(0, 1, (2, h, w)).astype(np.float32)
    age, live = rng.integers(0, 15, n).astype(np.int32), np.arange(n) != 5
    points = np.zeros((n, 16, 2), np.float32)
    places = np.stack([rng.uniform(-1, w, n), rng.uniform(-1, h, n)], 1).astype(np.float32)
    points[np.arange(n), age] = places
    where = _histogram_kernels.places(points, age, live, h, w)
    out = np.zeros((n, 12 * bins), np.float32)
    quiet = 0.4 if kind == "hof" else -1.0
    _histogram_kernels.describe(field[0], field[1], kind == "hog", quiet, where, age, 5, 0, out)
    x, y = field
    if kind == "hog":
        y, x = cv2.Sobel(field[0], cv2.CV_32F, 0, 1, ksize=1), cv2.Sobel(field[0], cv2.CV_32F, 1, 0, ksize=1)
    expected = np.zeros_like(out)
    for i in np.flatnonzero(live):
        left = min(max(round(float(places[i, 0])) - 16, 0), w - 32)
        top = min(max(round(float(places[i, 1])) - 16, 0), h - 32)
        start = age[i] // 5 * 4 * bins
        expected[i, start : start + 4 * bins] = _plain_histogram(x, y, quiet, left, top, bins) / 5
    np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("size", [(37, 43), (5, 5), (3, 2), (1, 18)])
@pytest.mark.parametrize(("median", "side"), [(median5, 5), (median3, 3)])
def test_medians_are_opencvs(size, median, side):
    w = size[1]
    image = np.random.default_rng(side).normal(size=size).astype(np.float32)
    out = np.empty_like(image)
    median(image.ravel(), 0, w, size, np.empty((side, w + 4), np.float32), out.ravel())
    np.testing.assert_array_equal(out, cv2.medianBlur(image, side))


def test_the_nearest_is_that_of_all_within_reach():
    rng = np.random.default_rng(0)
    first, second = (rng.uniform(0, 100, (n, 2)).astype(np.float32) for n in (60, 50))
    a, b = (rng.normal(size=(n, 37)).astype(np.float32) for n in (60, 50))
    apart = np.abs(first[None] - second[:, None]).max(2) >= 25
    distance = np.where(apart, np.inf, ((a[None].astype(float) - b[:, None]) ** 2).sum(2))
    expected = np.where(apart.all(1), -1, distance.argmin(1))
    np.testing.assert_array_equal(nearest(first, second, a, b, 25.0), expected)
