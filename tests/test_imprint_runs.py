"""Motion imprinting from videos to answers: what is extracted for it, all stages, RGB alone, the paper's tables."""

from __future__ import annotations

import shutil
import tomllib
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from make_videos import write_moving_squares
from unsealed import unsealed

import kdcache
from kdcache.engine import loop
from kdcache.methods import imprint
from kdcache.options import build
from kdcache.runs import presets
from kdcache.runs.explain import explain
from kdcache.runs.requirements import extraction_calls
from kdcache.runs.run import Run
from kdcache.runs.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"frames": 3, "size": 64}
LINES = dict.fromkeys(("stage1", "stage2", "stage3"), "epochs=1 milestones= batch_size=2")
QUICK = {**SMALL, **LINES, "hidden": 16, "augmentations": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six clips of a texture over which a square goes right or down, with what ``extract --for imprint`` caches."""
    root = tmp_path_factory.mktemp("videos")
    write_moving_squares(root)
    (call,) = extraction_calls("imprint", **SMALL)
    weights = {"resnet34": "random:0"}
    for streams in (["rgb"], call.streams):  # frames in a shard of their own, so that a test may destroy the rest
        report = kdcache.extract(root / "clips.csv", root, root / "out", streams, weights=weights, **call.settings)
        assert report.failures == []
    return root


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    """All three stages."""
    return kdcache.train("imprint", videos / "out", out=tmp_path_factory.mktemp("runs") / "run", **QUICK)


def test_one_extraction_serves_every_variant():
    (call,) = extraction_calls("imprint")
    assert sorted(call.streams) == ["idt", "resnet34/layer3", "rgb"]
    assert call.settings["frames"] == 7
    assert len(call.settings["views"]) == 10
    (light,) = extraction_calls("imprint", preset="light")
    assert sorted(light.streams) == ["idt", "resnet34/layer3"]
    (alone,) = extraction_calls("imprint", ms="none", feedback="off")
    assert alone.streams == ("resnet34/layer3",)


def test_three_stages(run):
    assert list(run.history["stage"]) == ["stage1", "stage2", "stage3"]
    assert run.history["L_cl"].notna().all()
    assert run.history["L_ms"].notna().tolist() == [False, True, True]
    assert run.history["lr"].tolist() == [1e-3, 1e-4, 1e-4]
    views = {name: stream.views for name, stream in run.training_data.data.inputs.items()}
    assert views == {"maps": 10, "motion_beside": 10, "rgb": 4, "motion": 4}
    maps = run.training_data.data.inputs["motion"].fetch(*3 * (run.training_data.data.splits["train"].rows["clip"],))
    assert 0 < float((maps > 0).float().mean()) < 0.9  # something moves, not everything


def test_rgb_alone_answers(run, videos, tmp_path):
    """Neither motion maps nor cached features are there any more, and the answers are the same."""
    before = run.predict("test")
    folder = tmp_path / "out"
    shutil.copytree(videos / "out", folder)
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    config = unsealed(moved / "config.toml")
    config.write_text(config.read_text().replace(str(videos / "out"), str(folder)))
    for stream in ("idt", "resnet34/layer3"):
        streams_cache.shard_of(folder, stream).write_bytes(b"no longer a shard")
    again = Run(moved)
    pd.testing.assert_frame_equal(again.predict("test"), before, check_exact=True)
    assert set(again.training_data.data.inputs) == {"rgb"}
    (answer,) = kdcache.predict(moved, videos / "v4.mp4")
    np.testing.assert_allclose(answer.probabilities, before.loc["v4"], atol=1e-5)


def test_pictures_of_a_run(run, videos):
    found = explain(run, videos / "out", "v4")
    assert found.stage == "stage3"
    titles = [picture.title for picture in found.pictures]
    assert titles[:4] == ["CAM before feedback", "CAM after feedback", "motion segmentation", "motion map"]
    assert [title.partition("_")[0] for title in titles[4:8]] == ["beta", "gamma", "conv1", "theta(conv1"]
    assert found.frames is not None
    cams = [picture.values for picture in found.pictures[:2]]
    assert not torch.equal(*cams)  # of stage 2 and of stage 3
    for cam in cams:
        torch.testing.assert_close(cam.sum((1, 2)), torch.ones(3))


def test_an_interrupted_run_goes_on_to_the_same_numbers(run, videos, tmp_path, monkeypatch):
    """In the middle of the third stage."""
    original = loop._step
    seen: list[str] = []

    def stopping(training, batch):
        original(training, batch)
        seen.append(training.stage.name)
        if seen.count("stage3") == 1:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            kdcache.train("imprint", videos / "out", out=tmp_path / "run", save_every=0.0, **QUICK)
    assert seen.count("stage2") == 2  # three clips in batches of two
    again = kdcache.train("imprint", videos / "out", out=tmp_path / "run", save_every=0.0, **QUICK)
    assert (again.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()


def test_a_variant_without_motion_reads_cached_maps_alone(videos, tmp_path):
    given = {"feedback": "off", "ms": "none", "attention": False}
    run = kdcache.train("imprint", videos / "out", out=tmp_path / "run", **QUICK, **given)
    assert list(run.history["stage"]) == ["stage1", "stage2"]
    assert set(run.training_data.data.inputs) == {"maps"}
    assert len(run.predict("test")) == 2


def test_runs_share_the_stages_that_do_not_differ(run, videos, tmp_path, monkeypatch):
    """Of the whole network's run, one of half α without feedback takes stage 1, and one without feedback stage 2."""
    seen: list[str] = []
    original = loop._step
    monkeypatch.setattr(loop, "_step", lambda run, batch: (seen.append(run.stage.name), original(run, batch)))
    session, weights = Session(stages=tmp_path / "kept", bars=False), {}
    for name, given in {"half": {"alpha": 0.5}, "ms": {}, "light": {"feedback": "layer3"}}.items():
        given = {"feedback": "off", **given, "session": session, **QUICK}
        made = kdcache.train("imprint", videos / "out", out=tmp_path / name, **given)
        weights[name] = [(made.path / stage / "last.safetensors").read_bytes() for stage in ("stage1", "stage2")]
    assert seen == ["stage1"] * 2 + ["stage2"] * 4 + ["stage3"] * 2  # three clips in batches of two
    assert weights["half"][0] == weights["ms"][0] == weights["light"][0]
    assert weights["half"][1] != weights["ms"][1] == weights["light"][1]
    assert [(run.path / stage / "last.safetensors").read_bytes() for stage in ("stage1", "stage2")] == weights["ms"]


# The paper's tables


def own_rows(table):
    """Rows that this method trains: name → options, and the paper's number."""
    content = tomllib.loads((files("kdcache") / "presets" / "imprint.toml").read_text())["tables"][table]
    return {row["name"]: (row["options"], row["paper"].get("top1")) for row in content["rows"] if "method" not in row}


def test_rows_of_the_tables_are_runnable_and_differ():
    for table, count in (("table3", 4), ("tau", 7), ("alpha", 5), ("ablations", 11)):
        rows = own_rows(table)
        assert len(rows) == count
        built = [build(imprint.Options, options) for options, _ in rows.values()]
        assert len(set(built)) == count
    assert [paper for _, paper in own_rows("tau").values()] == [58.62, 60.34, 59.84, 62.06, 56.89, 53.44, 58.62]
    assert own_rows("table3")["Our variation"] == ({}, 65.09)


def test_ego_rnn_rows_of_table_3():
    content = tomllib.loads((files("kdcache") / "presets" / "imprint.toml").read_text())["tables"]["table3"]
    other = {row["name"]: row["paper"]["top1"] for row in content["rows"] if row.get("method") == "egornn"}
    assert other == {
        "Temporal-warp flow": 42.24,
        "ConvLSTM": 52.56,
        "ConvLSTM with attention": 57.75,
        "Two-joint stream": 67.10,
    }
    assert [row.method for row in presets.tables("imprint")["table3"].rows] == ["egornn"] * 4 + [""] * 4
