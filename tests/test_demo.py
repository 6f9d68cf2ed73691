"""The demo's data set: the same seed gives the same bytes, pairs and splits are as documented, motion tells classes."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdcache
from kdcache.demo import run_demo, scene, tour
from kdcache.demo.scene import CLASSES, CONTACT, FPS, FRAMES, HEIGHT, WIDTH, make_dataset
from kdcache.sources import open_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_dataset(folder, clips_per_class=4)
    return folder


@pytest.fixture(scope="module")
def rows(folder) -> pd.DataFrame:
    return kdcache.read_manifest(folder / "clips.csv", folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_dataset(tmp_path / name, clips_per_class=1, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert [name for name in a if a[name] == c[name]] == ["clips.csv"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "videos").iterdir()}
    make_dataset(tmp_path / "a", clips_per_class=1)
    assert {p: p.stat().st_mtime_ns for p in before} == before  # what is there is not rendered again


def test_pairs_and_splits_are_as_documented(rows):
    assert len(rows) == 2 * 4 * len(CLASSES)
    assert set(rows.groupby("pair")["role"].agg(lambda r: tuple(sorted(r)))) == {("action", "observed")}
    assert (rows.groupby("pair")[["source", "label", "split"]].nunique() == 1).all(axis=None)
    assert rows.groupby(["label", "split"])["pair"].nunique().to_dict() == {
        (label, split): number for label in range(6) for split, number in (("train", 3), ("validation", 1))
    }
    assert rows["class"].tolist() == [CLASSES[label] for label in rows["label"]]
    by_role = rows.groupby("role")[["start_s", "stop_s"]].agg(["min", "max"])
    assert np.allclose(by_role.loc["observed"], [0, 0, CONTACT / FPS, CONTACT / FPS])
    assert np.allclose(by_role.loc["action"], [CONTACT / FPS, CONTACT / FPS, FRAMES / FPS, FRAMES / FPS])


def test_videos_are_what_the_manifest_says(folder, rows):
    with open_source(folder / rows["source"][0]) as source:
        assert (source.info.width, source.info.height, len(source.times)) == (WIDTH, HEIGHT, FRAMES)
        decoded = np.stack(list(source.read(range(FRAMES))))
        assert np.allclose(np.diff(source.times), 1 / FPS, atol=1e-3)
    drawn = scene.render(0, np.random.default_rng([0, 0, 0]))
    assert np.abs(decoded.astype(int) - drawn).mean() < 4


@pytest.mark.parametrize(("label", "way"), [(0, (-1, 0)), (1, (1, 0)), (2, (0, -1)), (3, (0, 1))])
def test_things_move_as_their_class_says(label, way):
    for number in range(5):
        poses = scene._motion(label, np.random.default_rng(number))
        moved = np.subtract(poses[-1].thing, poses[CONTACT].thing)
        assert np.dot(moved, way) > 20
        assert np.abs(np.dot(moved, way[::-1])) < 1


def test_only_the_hint_tells_the_class_before_the_contact():
    """Frames up to the contact are the same whatever is done later, but for the hint: lower and shake differ in it."""
    rng = np.random.default_rng
    told = scene._HINT
    try:
        scene._HINT = 0.0  # no clip tells
        left, right = (scene._motion(label, rng(4))[: CONTACT + 1] for label in (0, 1))
    finally:
        scene._HINT = told
    assert left == right


def test_the_demo_can_be_called_with_a_place_a_seed_and_a_size():
    assert list(inspect.signature(run_demo).parameters) == ["out", "seed", "clips_per_class"]


def test_the_demo_runs_from_end_to_end(tmp_path, monkeypatch, caplog):
    """What README's first command does, on fewer and smaller clips."""
    monkeypatch.setattr(tour, "SETTINGS", {"size": 32, "frames": 8})
    monkeypatch.setattr(tour, "SHORT_SIDE", 48)
    monkeypatch.setattr(tour, "HEAD", {"head": "light", "width": 8, "epochs": 1, "milestones": ()})
    monkeypatch.setattr(tour, "SEEDS", 2)
    monkeypatch.setattr(tour, "SHOWN", 1)
    monkeypatch.setattr(tour, "choose_weights", lambda: ({"i3d-rgb": "random:0"}, "with a RANDOM backbone"))
    caplog.set_level("INFO", "kdcache")
    sheet = run_demo(tmp_path, clips_per_class=4)
    assert sheet.stat().st_size > 10_000
    assert kdcache.Cache(tmp_path / "cache").streams == ["flow", "i3d-rgb/mixed4a", "idt", "rgb"]
    assert len(list((tmp_path / "runs").glob("*/metrics.json"))) == 3 * 2
    assert sum(" ± " in message and message.endswith("%") for message in caplog.messages) == 3
