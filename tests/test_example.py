"""``examples/two_stream.py``: trains, resumes to the bit, and predicts when its training-only stream is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import clips_cache
import numpy as np
import pairs_cache
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from unsealed import unsealed

import kdcache
from kdcache.cli import main
from kdcache.engine import loop
from kdcache.errors import StoreError
from kdcache.methods import METHODS, load_method, method
from kdcache.methods.contract import Method
from kdcache.runs.run import Run
from kdcache.store import Record, commit_shard, update_index

PATH = Path(__file__).resolve().parents[1] / "examples" / "two_stream.py"
QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.05, "width": 8, "device": "cpu", "save_every": 0.0}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def example():
    assert load_method(str(PATH)) == "two_stream"
    yield method("two_stream")
    METHODS.pop("two_stream")


def recipe(stream: str) -> dict:
    made = pairs_cache.recipe(stream)
    made["backbone"]["name"] = stream.partition("/")[0]
    return made


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """RGB maps that show the class faintly, flow maps that show it clearly; flow in shards of its own, two views."""
    folder = tmp_path_factory.mktemp("cache")
    table = clips_cache.rows(18, 6, validation=6)
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(3, 480, 1, 1, 1))
    for stream, strength in (("i3d-rgb/mixed4a", 0.3), ("i3d-flow/mixed4a", 1.0)):
        records = [
            Record(
                clip={k: v for k, v in row.items() if pd.notna(v)},
                origin={},
                keys={stream: f"{len(stream):02x}{i:030x}"},
                frames={stream: np.arange(4, dtype=np.int32)},
                arrays={
                    stream: (
                        rng.normal(size=(2, 480, 2, 3, 3)) + strength * prototypes[int(row["label"]) // 10]
                    ).astype(np.float16)
                },
            )
            for i, row in enumerate(table.to_dict("records"))
        ]
        update_index(folder, table, commit_shard(folder, records, {stream: recipe(stream)}).located)
    return folder


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory) -> Run:
    return kdcache.train(str(PATH), shards, out=tmp_path_factory.mktemp("runs") / "whole", **QUICK)


def test_it_is_short_and_provides_the_contract(example):
    assert len(PATH.read_text().splitlines()) < 80
    for name in (n for n in vars(Method) if not n.startswith("_")):
        assert hasattr(method("two_stream"), name), name


def test_it_trains_and_its_frozen_part_stays_as_the_backbone_has_it(finished):
    assert finished.metrics["selected_by"] == "validation"
    assert set(finished.history.columns) >= {"CE", "L_M"}
    trained = load_file(finished.path / "rgb" / "last.safetensors")
    backbone = kdcache.backbones.build("i3d-rgb", "random:0").state_dict()
    frozen = [name for name in trained if name.startswith("block.")]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(trained[n], backbone[f"Mixed_4b.{n.removeprefix('block.')}"]) for n in frozen)
    teacher = load_file(finished.path / "flow" / "last.safetensors")
    assert not torch.equal(teacher["block.b0.conv3d.weight"], trained["block.b0.conv3d.weight"])


@pytest.mark.parametrize("step", [1, 4, 7, 10])
def test_killed_and_repeated_equals_uninterrupted(shards, finished, tmp_path, monkeypatch, step):
    """3 steps an epoch, two epochs a stage."""
    original, taken = loop._step, iter(range(100))

    def crash(run, batch):
        original(run, batch)
        if next(taken) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_step", crash)
    with pytest.raises(KeyboardInterrupt):
        kdcache.train("two_stream", shards, out=tmp_path / "run", **QUICK)
    monkeypatch.undo()
    again = kdcache.train("two_stream", shards, out=tmp_path / "run", **QUICK)
    for stage in ("flow", "rgb"):
        a, b = (load_file(run.path / stage / "last.safetensors") for run in (finished, again))
        assert all(torch.equal(a[name], b[name]) for name in a)
    for weights in ("last", "best@validation"):
        assert again.metrics[weights] == finished.metrics[weights]


def test_it_predicts_without_the_stream_that_only_training_reads(shards, finished, tmp_path):
    bare = Path(shutil.copytree(shards, tmp_path / "cache"))
    removed = [path for path in bare.glob("*.h5") if b"i3d-flow" in path.read_bytes()]
    for path in removed:
        path.write_bytes(b"unreadable")
    assert len(removed) == 1
    with pytest.raises(StoreError):
        kdcache.Cache(bare).read("i3d-flow/mixed4a", [kdcache.Cache(bare).clips["clip_id"][0]])
    copy = Path(shutil.copytree(finished.path, tmp_path / "run"))
    config = unsealed(copy / "config.toml")
    config.write_text(config.read_text().replace(str(shards), str(bare)))
    run = Run(copy)
    for split in ("validation", "test"):
        pd.testing.assert_frame_equal(run.predict(split), Run(finished.path).predict(split), check_exact=True)
    assert run.evaluate()["last"] == finished.metrics["last"]
    result = CliRunner().invoke(main, ["evaluate", str(copy)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["last"] == finished.metrics["last"]
