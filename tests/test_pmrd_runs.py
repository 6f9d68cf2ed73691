"""PMRD as a run: four steps on a cache, interrupted and continued, shared between rows, and RGB alone in the end."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from unsealed import unsealed

import kdcache
from kdcache.engine import loop
from kdcache.runs.explain import explain
from kdcache.runs.requirements import extraction_calls
from kdcache.runs.run import Run
from kdcache.runs.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ["rgb-1", "rgb-2", "flow", "joint", "hallucination", "student"]
LINES = dict.fromkeys(("rgb_1", "rgb_2", "flow_branch", "hallucination"), "epochs=1 milestones= batch_size=4")
LINES |= dict.fromkeys(("joint", "student"), "epochs=1 batch_size=4")
QUICK = {"frames": 2, "size": 32, "hidden": 16, "augmentations": 3, "device": "cpu", **LINES}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Random frames, flow and layer-3 maps of six clips."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    table = streams_cache.rows(4, 0, 2)
    maps = streams_cache.features("resnet34/layer3", views=("centre", "centre-flip"))
    maps |= {"sampling": {"frames": 2, "fps": None, "anchor": "centre"}}
    maps["views"] |= {"size": 32, "resize": 36}
    clips = range(len(table))
    streams = [
        (streams_cache.JPEG, [streams_cache.jpegs(rng.integers(0, 255, (4, 40, 40, 3), np.uint8)) for _ in clips]),
        (streams_cache.FLOW, [rng.integers(64, 192, (3, 40, 40, 2), np.uint8) for _ in clips]),
        (maps, [rng.random((2, 2, 256, 2, 2)).astype(np.float16) for _ in clips]),
    ]
    return streams_cache.write(folder, table, streams, frames={"resnet34/layer3": [1, 3]})


def train(shards, out, **given):
    return kdcache.train("pmrd", shards, out=out, **{**QUICK, "validation": 0.0, **given})


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    return train(shards, tmp_path_factory.mktemp("runs") / "run", save_every=0.0)


def test_four_steps(run):
    history = run.history.set_index("stage")
    assert list(history.index) == STAGES
    assert history["CE_rgb"].notna().tolist() == [False, False, False, True, False, True]
    assert history["L_M"].notna().tolist() == [stage == "hallucination" for stage in STAGES]
    assert history.loc["hallucination", "alpha_mean"] == pytest.approx(1)
    assert run.metrics["steps"] == len(STAGES)  # one batch each, all of them towards what answers
    assert set(Run(run.path).training_data.data.inputs) == {"rgb"}


def test_rgb_alone_answers(run, shards, tmp_path):
    """Neither flow nor cached maps are there any more, and the answers are the same."""
    before = run.predict("test")
    folder, moved = tmp_path / "out", tmp_path / "run"
    shutil.copytree(shards, folder)
    shutil.copytree(run.path, moved)
    config = unsealed(moved / "config.toml")
    config.write_text(config.read_text().replace(str(shards), str(folder)))
    for stream in ("flow", "resnet34/layer3"):
        streams_cache.shard_of(folder, stream).write_bytes(b"no longer a shard")
    pd.testing.assert_frame_equal(Run(moved).predict("test"), before, check_exact=True)


def test_pictures_of_a_run(run, shards):
    found = {picture.title: picture for picture in explain(run, shards, "test-00").pictures}
    assert list(found) == ["CAM", "alpha_t", "motion hallucinated", "motion of flow"]
    torch.testing.assert_close(found["CAM"].values.sum((1, 2)), torch.ones(2))
    assert float(found["alpha_t"].values.sum()) == pytest.approx(2)
    assert found["motion hallucinated"].values.shape == (2, 8, 8)
    assert found["motion of flow"].values.shape == (2, 8, 8)


def test_interrupted_in_step_3_it_goes_on_to_the_same_bits(run, shards, tmp_path, monkeypatch):
    original = loop._step

    def stopping(training, batch):
        original(training, batch)
        if training.stage.name == "hallucination":
            raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            train(shards, tmp_path / "run", save_every=0.0)
    again = train(shards, tmp_path / "run", save_every=0.0)
    assert (again.path / "predictions.csv").read_bytes() == (run.path / "predictions.csv").read_bytes()


def test_rows_of_a_table_share_the_steps_that_do_not_differ(shards, tmp_path, monkeypatch):
    """A row that only reads flow, one of another loss, and one that starts step 1 otherwise."""
    seen: list[str] = []
    original = loop._step
    monkeypatch.setattr(loop, "_step", lambda run, batch: (seen.append(run.stage.name), original(run, batch)))
    session = Session(stages=tmp_path / "kept", bars=False)
    train(shards, tmp_path / "flow", session=session, network="flow")
    train(shards, tmp_path / "both", session=session, network="two-branch")
    assert seen == ["flow", "rgb-1", "rgb-2", "joint"]
    train(shards, tmp_path / "metric", session=session, network="hallucination", loss="metric")
    assert seen[4:] == ["hallucination"]
    weights = [tmp_path / name / "flow" / "last.safetensors" for name in ("flow", "both", "metric")]
    assert all(each.samefile(weights[0]) for each in weights)  # a gigabyte a run is not written again
    train(shards, tmp_path / "rgb", session=session, network="rgb", rgb_1="epochs=1 milestones= batch_size=2")
    assert seen[5:] == ["rgb-1", "rgb-1", "rgb-2"]


def test_what_extraction_computes():
    (call,) = extraction_calls("pmrd")
    assert sorted(call.streams) == ["flow", "resnet34/layer3", "rgb"]
    assert (call.settings["frames"], len(call.settings["views"])) == (20, 10)
    (light,) = extraction_calls("pmrd", preset="light")
    assert sorted(light.streams) == ["resnet34-flow/layer3", "resnet34/layer3"]
    (joint,) = extraction_calls("egornn")
    assert sorted(joint.streams) == ["flow-warped", "resnet34/layer3"]
