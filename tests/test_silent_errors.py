"""Wrong numbers without a word, and signals that were lost: each of these once happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import clips_cache
import pairs_cache
import pandas as pd
import pytest
from store_cases import flip
from unsealed import unsealed

import kdcache
from kdcache.engine import loop
from kdcache.errors import OptionError, StoreError
from kdcache.runs.config import renamed
from kdcache.runs.run import Run
from kdcache.runs.train import train
from kdcache.store.shard import Shard

PAIRS = {"head": "light", "width": 8, "epochs": 1, "milestones": (), "batch_size": 8, "device": "cpu", "data": "S"}
EARLY = {"hidden": 8, "teacher_hidden": 4, "epochs": 1, "milestones": (), "batch_size": 12, "device": "cpu"}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_of_examples_that_the_cache_no_longer_gives_says_so(tmp_path, caplog):
    run = train(
        "early", clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6), out=tmp_path / "r", **EARLY
    )
    assert "other examples" not in caplog.text
    shutil.rmtree(tmp_path / "cache")
    clips_cache.cache(tmp_path / "cache", train=24, validation=12, test=6)
    Run(run.path).evaluate()
    assert "was trained on other examples than its cache gives now" in caplog.text


def test_pairs_that_0_1_trained_on_are_not_validated_on(tmp_path, caplog):
    """It held no pairs out beside test pairs, as validation=0 does today."""
    table = pairs_cache.rows(24)
    table["split"] = table["split"].replace("validation", "test")
    folder = pairs_cache.write(tmp_path / "cache", table, pairs_cache.arrays(table))
    run = train("anticipation", folder, out=tmp_path / "run", validation=0.0, **PAIRS)
    config = unsealed(run.path / "config.toml")
    config.write_text(config.read_text().replace("validation = 0.0", "validation = 0.2"))
    assert list(Run(run.path).evaluate()["last"]) == ["test"]
    assert "other examples" not in caplog.text


def test_rows_of_different_examples_are_not_compared_silently(tmp_path):
    shards = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    options = {"seeds": 1, "tune": 0, "out": tmp_path / "out", "alpha": 0.0, **EARLY}
    first = kdcache.ablate("early", shards=shards, rows={"a": {}}, **options)
    assert "same examples" not in first.text
    shutil.rmtree(shards)
    clips_cache.cache(shards, train=30, validation=6, test=6)
    both = kdcache.ablate("early", shards=shards, rows={"a": {}, "b": {"beta": 0.5}}, **options)
    assert "Warning: the rows were not trained on the same examples" in both.text


def test_features_of_a_backbone_that_saw_test_labels_are_refused_for_pairs_too(tmp_path):
    table = pairs_cache.rows(24)
    folder = pairs_cache.write(tmp_path / "cache", table, pairs_cache.arrays(table))
    sha256 = "ab" * 32
    for path in [*folder.glob("*.h5"), folder / "manifest.csv"]:
        path.unlink()
    recipe = pairs_cache.recipe()
    recipe["backbone"]["weights"] = {"sha256": sha256}
    original, pairs_cache.recipe = pairs_cache.recipe, lambda stream=pairs_cache.STREAM: recipe
    try:
        pairs_cache.write(folder, table, pairs_cache.arrays(table))
    finally:
        pairs_cache.recipe = original
    (folder / "fitted").mkdir()
    metadata = {"backbone": "i3d-rgb", "num_classes": 3, "classes": [0, 5, 10], "limits": None, "validated_on": []}
    metadata |= {"fitted_on": ["p003-action"], "options": {}, "version": "0"}
    (folder / "fitted" / f"{sha256}.json").write_text(pd.Series(metadata).to_json())
    few = {**PAIRS, "label_fraction": 0.5}
    with pytest.raises(OptionError, match="fitted with labels of 1 validation clips"):
        train("anticipation", folder, out=tmp_path / "run", **few)
    assert train("anticipation", folder, out=tmp_path / "run", allow_leak=True, **few).metrics


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_in_the_last_epoch_is_not_lost(tmp_path, monkeypatch, number, raised):
    shards = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    evaluated = loop.evaluated

    def interrupted(run, known):
        os.kill(os.getpid(), number)
        return evaluated(run, known)

    monkeypatch.setattr(loop, "evaluated", interrupted)
    with pytest.raises(raised):
        train("early", shards, out=tmp_path / "run", alpha=0.0, **EARLY)
    monkeypatch.undo()
    assert (tmp_path / "run" / "student" / "summary.json").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.setattr(loop, "_step", None)  # nothing is trained again
    assert train("early", shards, out=tmp_path / "run", alpha=0.0, **EARLY).metrics["last"]


@pytest.mark.parametrize("damage", [b"", b"method = ", b"\xff\xfe", b"seed = 0\n"])
def test_a_damaged_configuration_is_named(tmp_path, damage):
    (tmp_path / "run").mkdir()
    Path(tmp_path / "run" / "config.toml").write_bytes(damage)
    with pytest.raises(OptionError, match=r"config\.toml"):
        Run(tmp_path / "run")


def test_an_option_and_its_old_name_together_are_refused():
    with pytest.raises(OptionError, match="hold and memory_fraction are one option: give memory_fraction alone"):
        renamed("early", {"hold": 0.1, "memory_fraction": 0.5})


def test_one_text_for_all_weights_is_refused_with_how_to_write_it(tmp_path):
    with pytest.raises(OptionError, match="name the backbone of each, as in weights="):
        kdcache.extract(clips_cache.rows(2, 1).assign(source="a.mp4"), tmp_path, tmp_path / "out", weights="random:0")


@pytest.mark.parametrize("memory_fraction", [0.0, 0.6], ids=["read batch by batch", "held in memory"])
def test_training_stops_at_a_damaged_clip_and_names_it(tmp_path, memory_fraction):
    """One bit of one mantissa: nothing but a checksum can tell. Cached anew, the same command goes on."""
    folder = clips_cache.cache(tmp_path / "cache", train=24, validation=6, test=6)
    (path,) = folder.glob("*.h5")
    whole, stored = path.read_bytes(), Shard.open(path).streams[clips_cache.STREAM]
    flip(path, stored.start + 7)
    chosen = {"out": tmp_path / "run", "memory_fraction": memory_fraction, **EARLY}
    with pytest.raises(StoreError, match=r"h5: stream 'vacnn/pool' of clip '.*' \(row 0\).*--repair.*kdcache extract"):
        train("early", folder, **chosen)
    path.write_bytes(whole)
    train("early", folder, **chosen)
