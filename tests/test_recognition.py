"""Recognition on a cached ``rgb`` stream."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import streams_cache
from make_videos import write as write_video
from safetensors.torch import load_file

import kdcache
from kdcache.backbones.metadata import read_metadata
from kdcache.errors import OptionError
from kdcache.runs.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"backbone": "resnet34", "init": "random:0", "frames": 2, "size": 32, "epochs": 1, "batch_size": 2, "lr": 0.01}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six short videos of two colours with their rgb cached, one of them without a label."""
    root = tmp_path_factory.mktemp("videos")
    rng, rows = np.random.default_rng(0), []
    for i, split in enumerate(("train", "train", "train", "train", "validation", "test")):
        frames = [rng.integers(0, 120, (48, 64, 3)).astype(np.uint8) for _ in range(4)]
        for frame in frames:
            frame[..., i % 2] += 100
        write_video(root / f"v{i}.mp4", frames)
        rows.append((f"v{i}", f"v{i}.mp4", np.nan, np.nan, split, "" if i == 3 else str(3 * (i % 2))))
    table = pd.DataFrame(rows, columns=["clip_id", "source", "start_s", "stop_s", "split", "label"])
    table.to_csv(root / "clips.csv", index=False)
    kdcache.extract(root / "clips.csv", root, root / "out", ["rgb"])
    return root


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """A network trained from that cache."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return kdcache.train("recognition", videos / "out", out=out, device="cpu", augmentations=5, **TINY)


def test_it_trains_on_cached_frames(run):
    assert run.resolved["stream"] == "rgb"
    assert list(run.history["stage"]) == ["fit"]
    assert set(run.metrics["last"]) == {"validation", "test"}
    assert run.training_data.data.inputs["x"].shape == (2, 32, 32, 3)
    frame = Run(run.path).predict("train")
    assert sorted(frame.index) == ["v0", "v1", "v2", "v3"]  # its frames are in the cache, whatever its label
    np.testing.assert_allclose(frame.sum(axis=1), 1, rtol=1e-5)
    assert list(frame.columns) == [0, 3]


def test_its_weights_are_what_extraction_takes(run, videos, tmp_path):
    path = run.export()
    assert path == run.path / "resnet34.safetensors"
    facts = read_metadata(path)
    assert (facts.classes, facts.fitted_on, facts.validated_on) == ((0, 3), ("v0", "v1", "v2"), ("v4",))
    trained = load_file(run.path / "fit" / "best.safetensors")
    assert all(np.array_equal(value, trained[f"net.{name}"]) for name, value in load_file(path).items())
    last = run.export(tmp_path / "last.safetensors", "last")
    assert last.exists()
    report = kdcache.extract(
        videos / "clips.csv", videos, tmp_path / "features", ["resnet34/pool"], weights={"resnet34": path}, size=32
    )
    assert report.failures == []
    cache = kdcache.Cache(tmp_path / "features")
    assert cache.read("resnet34/pool", ["v5"]).shape[-1] == 512
    assert (tmp_path / "features" / "fitted").is_dir()


def test_other_methods_export_nothing(tmp_path):
    table = streams_cache.rows(4, 2, 2)
    levels = streams_cache.features("tsm-resnet50/clip", views=("centre",))
    levels |= {"progress": {"levels": 5, "mode": "segment"}, "sampling": {"frames": 8}}
    vectors = list(np.random.default_rng(0).normal(size=(8, 1, 5, 6)).astype(np.float16))
    folder = streams_cache.write(tmp_path / "cache", table, [(levels, vectors)])
    run = kdcache.train("early", folder, out=tmp_path / "run", device="cpu", model="knn")
    with pytest.raises(OptionError, match="is a run of early: only recognition trains a backbone"):
        run.export()


def test_fps_is_that_of_the_extraction(videos, tmp_path):
    with pytest.raises(OptionError, match=r"fps=5.0: cached frames keep the rate at which rgb was extracted; drop fps"):
        kdcache.train("recognition", videos / "out", out=tmp_path / "run", device="cpu", fps=5.0, **TINY)
    assert not (tmp_path / "run").exists()
