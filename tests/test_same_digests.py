"""Whatever decodes, and in whatever process: a cache holds the same bytes."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from pathlib import Path

import pytest
from make_videos import pictures, write

import kdcache
from kdcache.store import load_index

DECODERS = [
    pytest.param("decord", marks=pytest.mark.skipif(not importlib.util.find_spec("decord"), reason="no decord")),
    "pyav",
]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 24 frames, of which the manifest cuts four clips; decord reads it, too."""
    root = tmp_path_factory.mktemp("video")
    write(root / "film.mp4", pictures(24, 96, 64, seed=5))
    spans = [(0.0, 0.2), (0.2, 0.5), (0.48, 0.96), (0.0, 0.96)]
    lines = [f"film.mp4,{start},{stop}" for start, stop in spans]
    (root / "clips.csv").write_text("\n".join(["source,start_s,stop_s", *lines, ""]))
    return root


@pytest.fixture(scope="module")
def expected(video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By PyAV, in this process."""
    out = tmp_path_factory.mktemp("alone")
    extract(video, out, "pyav", 1)
    return digests(out)


def extract(root: Path, out: Path, decoder: str, workers: int) -> None:
    how = {"decoder": decoder, "workers": workers, "device": "cpu", "short_side": 32, "bar": False}
    report = kdcache.extract(root / "clips.csv", root, out, ["rgb"], **how)
    assert (report.extracted, report.failures) == (4, [])


def digests(out: Path) -> dict[str, str]:
    """Clip → digest of its pictures; keys say which decoder was asked for."""
    index = load_index(out)
    assert (index["rgb:digest"] != "").all()
    return dict(zip(index["clip_id"], index["rgb:digest"], strict=True))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("decoder", DECODERS)
def test_in_a_forked_process(video, expected, tmp_path, decoder):
    """As a job array does that forks after its imports; the parent has decoded before."""
    child = multiprocessing.get_context("fork").Process(target=extract, args=(video, tmp_path, decoder, 1))
    child.start()
    child.join(120)
    hangs = child.is_alive()
    child.kill()
    assert (hangs, child.exitcode) == (False, 0)
    assert digests(tmp_path) == expected


@pytest.mark.parametrize("decoder", DECODERS)
def test_in_two_spawned_workers(video, expected, tmp_path, decoder):
    extract(video, tmp_path, decoder, 2)
    assert digests(tmp_path) == expected


def test_by_decord_in_this_process(video, expected, tmp_path):
    pytest.importorskip("decord")
    extract(video, tmp_path, "decord", 1)
    assert digests(tmp_path) == expected
