"""Motion maps: what is painted where, and how it is pooled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kdcache.errors import ClipError, OptionError
from kdcache.motion.maps import motion_maps, paint, pooled_maps
from kdcache.sources import open_source


def table(*tracks: tuple[int, float, np.ndarray]) -> pd.DataFrame:
    """Trajectories from (end frame, scale, path [16, 2])."""
    return pd.DataFrame({
        "end_frame": [t[0] for t in tracks], "scale": [t[1] for t in tracks],
        "start": [t[2][0] for t in tracks], "points": [t[2][1:] for t in tracks],
    })  # fmt: skip


def line(x: float, y: float, dx: float) -> np.ndarray:
    return np.stack([x + dx * np.arange(16), np.full(16, y)], axis=1).astype(np.float32)


def test_discs_follow_the_track_and_grow_with_its_scale() -> None:
    maps = paint(table((20, 1.0, line(10, 20, 2)), (25, 4.0, line(50, 40, 0))), 30, 60, 80, least_radius=0)
    assert maps.dtype == np.uint8
    assert set(np.unique(maps)) == {0, 255}
    for t in (5, 12, 20):
        ys, xs = np.nonzero(maps[t, :30])
        assert (xs.mean(), ys.mean()) == (10 + 2 * (t - 5), 20)
        assert np.ptp(xs) == 2 * 2  # half a sampling step, rounded
    ys, xs = np.nonzero(maps[22])
    assert (np.ptp(xs), np.ptp(ys)) == (20, 20)
    assert not maps[26:].any()


def test_frames_before_the_first_mark_repeat_it() -> None:
    maps = paint(table((20, 1.0, line(10, 20, 2))), 30, 60, 80)
    assert maps[5].any()
    for t in range(5):
        np.testing.assert_array_equal(maps[t], maps[5])


def test_the_least_radius_is_five_pixels_at_256() -> None:
    maps = paint(table((16, 1.0, line(100, 100, 0))), 17, 256, 300)
    assert np.ptp(np.nonzero(maps[16])[1]) == 10


def test_discs_at_the_border_and_empty_tables() -> None:
    assert paint(table((16, 1.0, line(0, 0, 0))), 17, 20, 20)[16, 0, 0] == 255
    assert not paint(table(), 4, 20, 20).any()


def test_pooling_gives_the_share_of_each_cell() -> None:
    maps = np.zeros((2, 14, 21), np.uint8)
    maps[0, :2, :3] = 255
    maps[1, 2:4, 3] = 255
    shares, labels = pooled_maps(maps)
    assert shares.shape == labels.shape == (2, 7, 7)
    assert (shares.dtype, labels.dtype) == (np.float32, np.uint8)
    assert shares[0, 0, 0] == 1
    assert shares[0].sum() == 1
    assert shares[1, 1, 1] == pytest.approx(1 / 3)
    assert labels[1, 1, 1] == 1
    assert pooled_maps(maps, tau=0.34)[1][1].sum() == 0


def test_a_cell_at_the_threshold_is_not_moving() -> None:
    maps = np.zeros((1, 10, 10), np.uint8)
    maps[0, :2] = 255
    assert pooled_maps(maps, grid=1, tau=0.2)[1].sum() == 0
    assert pooled_maps(maps, grid=1, tau=0.19)[1].sum() == 1


@pytest.mark.parametrize(("height", "width", "grid"), [(120, 160, 7), (37, 53, 7), (7, 7, 7), (144, 180, 5)])
def test_pooling_keeps_the_mean(height: int, width: int, grid: int) -> None:
    maps = (np.random.default_rng(0).random((3, height, width)) < 0.3).astype(np.uint8) * 255
    shares, _ = pooled_maps(maps, grid)
    np.testing.assert_allclose(shares.mean(axis=(1, 2)), maps.mean(axis=(1, 2)) / 255, atol=1e-6)
    assert (pooled_maps(np.full_like(maps, 255), grid)[0] == 1).all()


def test_bad_input_is_refused() -> None:
    maps = np.zeros((2, 14, 14), np.uint8)
    with pytest.raises(ClipError, match="uint8"):
        pooled_maps(maps.astype(np.float32))
    with pytest.raises(OptionError, match="finer"):
        pooled_maps(maps, grid=15)
    with pytest.raises(OptionError, match="tau"):
        pooled_maps(maps, tau=1.0)


def test_short_and_still_clips_have_empty_maps() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 33, 47, 3), dtype=np.uint8)
    assert motion_maps(noise).shape == (20, 33, 47)
    assert not motion_maps(noise[:15]).any()
    assert not motion_maps(np.repeat(noise[:1], 20, axis=0)).any()


def test_a_waving_person_moves_at_the_arms_only(shared: Path) -> None:
    with open_source(shared / "data" / "weizmann" / "wave1" / "daria_wave1.avi") as source:
        clip = np.stack(list(source.read(range(30))))
    moving = (motion_maps(clip) > 0).mean(axis=0)
    assert 0.005 < moving.mean() < 0.1
    varies = np.ptp(clip.astype(np.float32).mean(axis=3), axis=0)
    assert varies[moving > 0.5].mean() > 3 * varies[moving == 0].mean()
    assert not moving[110:].any()  # legs and pavement
