"""Privileged inputs: read in training only; predicting never opens their streams."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import streams_cache
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import kdcache
from kdcache.cli import main
from kdcache.engine import loop
from kdcache.errors import OptionError, StoreError
from kdcache.methods import registry
from kdcache.methods.contract import BatchSource, Data, Input, Predictor, Segment, Stage, predict_with, reseed
from kdcache.methods.labels import held_out_sets
from kdcache.methods.options import LabelOptions, TrainOptions
from kdcache.runs.evaluate import evaluate
from kdcache.runs.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
SEEN: list[set[str]] = []
"""The names in each batch that the method was trained on."""


@dataclass(frozen=True, kw_only=True)
class WithFlowOptions(LabelOptions, TrainOptions):
    """Options of the method of this file."""

    epochs: int = 2
    batch_size: int = 4
    peeks: bool = False
    """Predict from flow, which it may not."""


class Pixels(nn.Module):
    """Means of the channels, and a linear layer."""

    def __init__(self, channels, classes):
        super().__init__()
        self.layer = nn.Linear(channels, classes)

    def forward(self, x):
        return {"logits": self.layer(x.float().mean((1, 2, 3)) / 64 - 2)}


def inputs(options):
    segment = Segment(frames=3, size=16, resize=20, augmentations=20)
    return (
        Input(name="x", axes="THWC", stream="rgb", segment=segment),
        Input(name="hint", axes="THWC", stream="flow", segment=segment, when="train"),
    )


def resolve(options, data):
    return replace(options, target=options.choose_target(data))


def stages(options: WithFlowOptions, data: Data) -> Iterator[Stage]:
    classes = len(data.classes[options.target])
    reseed(data, "start")
    network, teacher = Pixels(3, classes), Pixels(2, classes)
    both = nn.ModuleDict({"network": network, "teacher": teacher})
    train = data.splits["train"]

    def losses(batch):
        SEEN.append(set(batch))
        a, b = network(batch["x"])["logits"], teacher(batch["hint"])["logits"]
        return {"L": F.cross_entropy(a, batch["y"]) + F.cross_entropy(b, batch["y"]), "L_d": (a - b).square().mean()}

    optimizer, scheduler = options.optimise(both.parameters())
    yield Stage(
        name="both",
        module=both,
        train=BatchSource(
            {name: (stream, train.rows["clip"]) for name, stream in data.inputs.items()},
            {"y": train.labels[options.target]},
        ),
        losses=losses,
        predict=predict_with(network),
        optimizer=optimizer,
        scheduler=scheduler,
        epochs=options.epochs,
        batch_size=options.batch_size,
        eval_sets=held_out_sets(data, options.target, {"x": data.inputs["x"]}, "clip"),
    )


def predictor(options: WithFlowOptions, data: Data) -> Predictor:
    classes = len(data.classes[options.target])
    both = nn.ModuleDict({"network": Pixels(3, classes), "teacher": Pixels(2, classes)})
    read = dict(data.inputs) if options.peeks else {"x": data.inputs["x"]}
    return Predictor(stage="both", module=both, predict=predict_with(both["network"]), inputs=read, role="clip")


@pytest.fixture(autouse=True)
def with_flow(monkeypatch):
    """The method ``with-flow``, of this file."""
    module = ModuleType("kdcache.methods.with_flow")
    for name, value in (("inputs", inputs), ("resolve", resolve), ("stages", stages), ("predictor", predictor)):
        setattr(module, name, value)
    module.Options = WithFlowOptions
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.METHODS, "with-flow", module.__name__)
    SEEN.clear()


@pytest.fixture
def shards(tmp_path):
    """Clips of two classes of brightness; of test clips, and of two training clips, there is no flow."""
    table = streams_cache.rows(12, 4, 4)
    rng = np.random.default_rng(0)
    frames = [rng.integers(60 * (i % 2), 120 + 60 * (i % 2), (5, 20, 26, 3)).astype(np.uint8) for i in range(20)]
    fields = [rng.integers(100 + 20 * (i % 2), 140 + 20 * (i % 2), (4, 20, 26, 2)).astype(np.uint8) for i in range(20)]
    lacking = {"train-03", "train-08", *(clip for clip in table["clip_id"] if clip.startswith("test"))}
    fields = [None if clip in lacking else field for clip, field in zip(table["clip_id"], fields, strict=True)]
    jpegs = [streams_cache.jpegs(each) for each in frames]
    return streams_cache.write(tmp_path / "cache", table, [(streams_cache.JPEG, jpegs), (streams_cache.FLOW, fields)])


def test_the_method_of_this_file_is_one():
    assert registry.method("with-flow").Options is WithFlowOptions


def test_training_reads_both_and_predicting_the_one_that_is_always_there(shards, tmp_path, caplog):
    caplog.set_level("INFO", "kdcache")
    run = kdcache.train("with-flow", shards, out=tmp_path / "run", device="cpu")
    assert all(names == {"x", "hint", "y", "view"} for names in SEEN)
    assert len(SEEN) == 2 * 3  # 10 training clips in batches of 4
    assert "left out: 2 of 20 clips are not there (train-03, train-08)" in caplog.text
    assert run.resolved["stream"] == "x=rgb,hint=flow"
    assert len(run.predict("test")) == 4
    assert "train-03" not in run.predict("train").index
    before = {split: run.predict(split) for split in ("train", "validation", "test")}
    stored = (run.path / "predictions.csv").read_bytes()
    streams_cache.shard_of(shards, "flow").unlink()
    again = Run(run.path)
    for split, frame in before.items():
        pd.testing.assert_frame_equal(again.predict(split), frame, check_exact=True)
    assert set(again.training_data.data.inputs) == {"x"}
    assert set(again.training_data.recipes) == {"rgb"}
    assert again.evaluate()["last"] == run.metrics["last"]
    assert evaluate(run.path)["best@validation"] == run.metrics["best@validation"]
    assert again.predictions().to_csv(float_format="%.6g", lineterminator="\n", index=False).encode() == stored
    answered = CliRunner().invoke(main, ["evaluate", str(run.path)])
    assert answered.exit_code == 0, answered.output
    assert json.loads(answered.stdout)["last"] == run.metrics["last"]
    with pytest.raises(StoreError):
        kdcache.train("with-flow", shards, out=tmp_path / "other", device="cpu")
    assert not (tmp_path / "other").exists()


def test_a_run_goes_on_with_its_privileged_stream_and_to_the_same_numbers(shards, tmp_path, monkeypatch):
    whole = kdcache.train("with-flow", shards, out=tmp_path / "whole", device="cpu")
    taken, original = iter(range(1, 100)), loop._step

    def stopping(run, batch):
        original(run, batch)
        if next(taken) == 4:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_step", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            kdcache.train("with-flow", shards, out=tmp_path / "run", device="cpu", save_every=0.0)
    run = kdcache.train("with-flow", shards, out=tmp_path / "run", device="cpu", save_every=0.0)
    assert (run.path / "predictions.csv").read_bytes() == (whole.path / "predictions.csv").read_bytes()
    left, right = (json.loads((r.path / "both" / "summary.json").read_text()) for r in (run, whole))
    assert [{**row, "seconds": 0} for row in left["rows"]] == [{**row, "seconds": 0} for row in right["rows"]]


def test_a_predictor_that_reads_a_privileged_input_is_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="with-flow predicts from hint, which it reads in training only"):
        kdcache.train("with-flow", shards, out=tmp_path / "run", device="cpu", peeks=True, epochs=1)


def test_a_clip_that_the_network_cannot_see_is_named(shards, tmp_path):
    """From memory its row would be that of the next clip."""
    table = streams_cache.rows(4, 2, 2)
    vectors = list(np.random.default_rng(0).normal(size=(8, 1, 5, 6)).astype(np.float16))
    levels = streams_cache.features("tsm-resnet50/clip", views=("centre",))
    levels |= {"progress": {"levels": 5, "mode": "segment"}, "sampling": {"frames": 8}}
    folder = streams_cache.write(tmp_path / "levels", table, [(levels, vectors)])
    run = kdcache.train("early", folder, out=tmp_path / "run", device="cpu", epochs=1, hidden=4, teacher_hidden=2)
    stream = run.training_data.data.inputs["x"]
    stream.available = torch.tensor([clip != "test-00" for clip in run.training_data.examples.clip_ids])
    with pytest.raises(OptionError, match="Clip 'test-00' has no array of what the network reads: extract it"):
        run.predict(["test-01", "test-00"])
    assert len(run.predict(["test-01"])) == 5


def test_a_cache_without_the_privileged_stream_is_refused_for_training(shards, tmp_path):
    table = streams_cache.rows(4, 2, 2)
    frames = [streams_cache.jpegs(np.zeros((3, 20, 26, 3), np.uint8)) for _ in range(8)]
    folder = streams_cache.write(tmp_path / "rgb", table, [(streams_cache.JPEG, frames)])
    with pytest.raises(OptionError, match=r"does not hold frames \[T, H, W, C\] for input hint .*`kdcache extract`"):
        kdcache.train("with-flow", folder, out=tmp_path / "run", device="cpu")
