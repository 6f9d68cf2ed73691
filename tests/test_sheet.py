"""The contact sheet of a clip: which rows it has, that each shows its stream, and clips without any."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import kdcache
from kdcache.demo.scene import make_dataset
from kdcache.errors import OptionError
from kdcache.report.sheet import sheet
from kdcache.report.strips import GAP, LEFT, LINES, THUMB
from kdcache.streams.backbone import map_energy
from kdcache.streams.base import COLUMNS

CLIP = "push-left-00-action"
FEATURE = "i3d-rgb/mixed4a"
SMALL = {"size": 32, "frames": 8, "short_side": 96, "weights": {"i3d-rgb": "random:0"}, "bar": False}
TITLE, STRIP, CURVES = 64, round(96 / 128 * THUMB) + 24, 160
ENERGY = THUMB + 24  # features of a square crop


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    make_dataset(folder, clips_per_class=1)
    return folder


def extracted(dataset: Path, out: Path, streams: list[str], rows: pd.DataFrame | None = None) -> kdcache.Cache:
    if rows is None:
        rows = kdcache.read_manifest(dataset / "clips.csv", dataset)
        rows = rows[rows["clip_id"] == CLIP].reset_index(drop=True)
    kdcache.extract(rows, root=dataset, out=out, streams=streams, **SMALL)
    return kdcache.Cache(out)


@pytest.fixture(scope="module")
def full(dataset, tmp_path_factory) -> kdcache.Cache:
    return extracted(dataset, tmp_path_factory.mktemp("full"), ["rgb", "flow", "idt", FEATURE])


def split(picture: np.ndarray, *heights: int) -> list[np.ndarray]:
    """A picture cut into its rows, which must have these heights."""
    assert sum(heights) == len(picture)
    return np.split(picture, np.cumsum(heights)[:-1])


def thumbs(row: np.ndarray) -> np.ndarray:
    """The pictures of a row, [columns, height, width, 3]."""
    places = [LEFT + i * (THUMB + GAP) for i in range(COLUMNS)]
    return np.stack([row[:-24, x : x + THUMB] for x in places])


def test_every_stream_has_a_row_that_shows_it(full):
    picture = sheet(full, CLIP)
    assert picture.dtype == np.uint8
    rows = split(picture, TITLE, STRIP, STRIP, STRIP, STRIP, ENERGY, CURVES)
    title, frames, flow, tracks, motion, energy, curves = rows
    assert all((row.min(axis=2) < 128).any() for row in rows)
    assert (title[8:30] < 128).any()

    rgb = full.read("rgb", [CLIP])[0]
    picked = np.linspace(0, len(rgb) - 1, COLUMNS).round().astype(int)
    for shown, frame in zip(thumbs(frames), rgb[picked], strict=True):
        expected = cv2.resize(frame, (THUMB, len(shown)), interpolation=cv2.INTER_NEAREST)
        assert (shown == expected).all()
    assert (thumbs(flow).std(axis=(1, 2)) > 1).any(axis=1).all()
    drawn = thumbs(tracks)
    touched = (drawn != thumbs(frames)).any(axis=3)
    assert 0 < touched.mean() < 0.5
    assert (drawn[touched] == [255, 0, 0]).all(axis=1).any()  # heads of trajectories
    idt = full.read("idt", [CLIP])[0]
    moving = (thumbs(motion) == 255).all(axis=3).mean(axis=(1, 2))
    assert np.allclose(moving, (idt[picked] == 255).mean(axis=(1, 2)), atol=0.02)
    assert moving.max() > 0
    assert (thumbs(energy)[:2].std(axis=(1, 2)) > 1).any(axis=1).all()  # the features have two time steps
    assert (thumbs(energy)[2:] == 255).all()
    assert (curves == LINES[0]).all(axis=2).sum() > 500

    wheel = flow[:80, LEFT + COLUMNS * (THUMB + GAP) :]
    assert len(np.unique(wheel.reshape(-1, 3), axis=0)) > 100


def test_show_writes_the_sheet_as_png(full, tmp_path, monkeypatch):
    path = kdcache.show(full.path, CLIP, tmp_path / "deep" / "sheet.png")
    assert path == tmp_path / "deep" / "sheet.png"
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert (np.asarray(image) == sheet(full, CLIP)).all()
    monkeypatch.chdir(tmp_path)
    assert kdcache.show(full, CLIP) == Path(f"sheets/{CLIP}.png")
    assert (tmp_path / f"sheets/{CLIP}.png").read_bytes() == path.read_bytes()


def test_a_clip_that_is_not_there_is_named(full, tmp_path):
    with pytest.raises(OptionError, match=r"there is no clip 'push-left'; see the column clip_id of its manifest\.csv"):
        kdcache.show(full, "push-left", tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_a_clip_that_failed_has_nothing_to_show(dataset, tmp_path):
    (dataset / "videos/broken.mp4").write_bytes(b"no video")
    rows = kdcache.read_manifest(dataset / "clips.csv", dataset).iloc[:2].copy()
    rows.loc[0, "source"] = "videos/broken.mp4"
    cache = extracted(dataset, tmp_path, ["rgb"], rows)
    with pytest.raises(OptionError, match="'push-left-00-observed' has no cached stream; run extract first"):
        sheet(cache, "push-left-00-observed")
    assert len(sheet(cache, CLIP)) == TITLE + 2 * STRIP


@pytest.mark.parametrize(
    ("streams", "heights"), [([FEATURE], (TITLE, ENERGY, CURVES)), (["flow", "idt"], (TITLE, STRIP, STRIP))]
)
def test_a_cache_without_frames_is_drawn_too(dataset, tmp_path, streams, heights):
    rows = split(sheet(extracted(dataset, tmp_path, streams), CLIP), *heights)
    assert all((row.min(axis=2) < 128).any() for row in rows)


def test_a_clip_of_one_frame_has_frames_but_no_motion(dataset, tmp_path):
    rows = pd.DataFrame({"clip_id": ["a/b"], "source": ["videos/lift-00.mp4"], "start_s": [1.0], "stop_s": [1.01]})
    cache = extracted(dataset, tmp_path / "out", ["rgb", "flow", "idt", FEATURE], rows)
    _, frames, motion, _, _ = split(sheet(cache, "a/b"), TITLE, STRIP, STRIP, ENERGY, CURVES)
    assert (thumbs(frames)[1:] == 255).all()
    assert (thumbs(motion)[0] == 0).all()


def test_energy_takes_channels_wherever_they_are():
    maps = np.random.default_rng(0).normal(size=(3, 6, 2, 2)).astype(np.float32)  # fewer channels than time steps
    energy = map_energy(maps, "CTHW")
    assert energy.shape == (6, 2, 2)
    assert np.allclose(energy[4, 0, 1], (maps[:, 4, 0, 1] ** 2).mean())
    assert (map_energy(np.swapaxes(maps, 0, 1), "TCHW") == energy).all()
    assert (map_energy(np.swapaxes(maps, 0, 1), "NCHW") == energy).all()
    assert (map_energy(np.moveaxis(maps, 0, -1), "THWC") == energy).all()
    assert map_energy(maps, None).shape == (3, 2, 2)  # not known: the longer one is taken for channels


def test_a_clip_with_nothing_to_draw_says_so(dataset, tmp_path):
    rows = kdcache.read_manifest(dataset / "clips.csv", dataset).iloc[:2]
    kdcache.extract(rows, root=dataset, out=tmp_path, streams=["i3d-rgb/pool"], **SMALL | {"frames": 16})
    cache = kdcache.Cache(tmp_path)
    with pytest.raises(OptionError, match=r"only i3d-rgb/pool, which is no picture; extract rgb"):
        sheet(cache, CLIP)
