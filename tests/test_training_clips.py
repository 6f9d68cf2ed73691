"""Examples of one clip each: splits, hold-out, joined streams, what runs share, early stopping."""

from __future__ import annotations

import json
from dataclasses import replace

import clips_cache
import numpy as np
import pandas as pd
import pytest
import torch
from memory_stream import CPU, MemoryStream, data_on
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR, ReduceLROnPlateau

from kdcache.data.clips import clips
from kdcache.data.inputs import bind
from kdcache.data.stream import CachedStream, JoinedStream, MemoryBudget
from kdcache.engine.log import Log
from kdcache.engine.loop import fit_stage
from kdcache.errors import OptionError
from kdcache.methods.contract import BatchSource, Input, Stage, predict_with
from kdcache.store import Cache
from kdcache.workers import Interrupts


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level("INFO", "kdcache")
    global notes
    notes = caplog


def joined(table, share=0.2, usable=None):
    notes.clear()
    usable = np.ones(len(table), bool) if usable is None else usable
    return clips(table, usable, share), list(notes.messages)


def test_clips_keep_the_manifests_splits_and_are_sorted_by_id():
    made, notes = joined(clips_cache.rows(6, 3, validation=3).sample(frac=1, random_state=0))
    assert {split: len(samples) for split, samples in made.splits.items()} == {"train": 6, "validation": 3, "test": 3}
    assert made.splits["train"].names == [f"train-0-{i:03d}" for i in range(6)]
    assert [made.clip_ids[r] for r in made.splits["test"].rows["clip"]] == made.splits["test"].names
    assert made.classes == {"label": [0, 10, 20]}
    assert made.splits["train"].labels["label"].tolist() == [0, 1, 2, 0, 1, 2]
    assert notes == []


def test_where_nobody_is_held_out_subjects_of_the_training_clips_are_never_of_the_test_clips():
    table = clips_cache.rows(40, 12, unlabelled=8)
    made, notes = joined(table)
    again, _ = joined(table.sample(frac=1, random_state=3))
    assert made.splits["validation"].names == again.splits["validation"].names
    subject = table.set_index("clip_id")["subject"]
    held = set(subject[made.splits["validation"].names])
    assert not held & set(subject[made.splits["train"].names])
    assert len(made.splits["test"]) == 12
    assert notes[0].startswith("validation: the manifest names none, so 10 of 40 labelled ones are held out (subject")
    whole, _ = joined(table, share=0)
    assert set(whole.splits) == {"train", "test"}


def test_hold_out_needs_something_to_hold_out_from():
    with pytest.raises(OptionError, match="validation=0 leaves nothing to test on"):
        joined(clips_cache.rows(6, 0), share=0)
    assert len(joined(clips_cache.rows(12, 0))[0].splits["validation"]) > 0


def test_clips_that_are_not_there_are_counted_and_change_no_split():
    table = clips_cache.rows(40, 12)
    before = set(joined(table)[0].splits["validation"].names)
    usable = ~table["clip_id"].isin(["train-0-000", "test-2-001"]).to_numpy()
    made, notes = joined(table, usable=usable)
    assert set(made.splits["validation"].names) == before - {"train-0-000"}
    assert notes[-1] == "left out: 2 of 52 clips are not there (test-2-001, train-0-000)"


VECTORS = Input(name="x", axes="ND", extract=("tsm/clip",), settings={"levels": 10})
MAPS = Input(name="x", axes="CTHW")


def test_two_streams_join_side_by_side(tmp_path):
    table = clips_cache.rows(4, 2)
    first, second = clips_cache.arrays(table, views=2, width=3), clips_cache.arrays(table, views=2, width=4, seed=1)
    folder = clips_cache.write(tmp_path, table, {"tsm/clip": first, "vacnn/pool": second})
    cache, ids = Cache(folder), list(table["clip_id"])
    (binding,) = bind(cache, [VECTORS], "tsm/clip, vacnn/pool")
    budget = MemoryBudget(1e9)
    stream = JoinedStream([CachedStream(cache, name, ids, CPU, budget) for name in binding.streams])
    assert (stream.shape, stream.views, stream.resident) == ((5, 7), 2, True)
    rows = torch.tensor([3, 0])
    got = stream.to_device(stream.fetch(rows, torch.tensor([1, 0]), rows)).numpy()
    want = [np.concatenate([first[i][v], second[i][v]], axis=-1) for i, v in ((3, 1), (0, 0))]
    assert np.array_equal(got, np.stack(want).astype(np.float32))
    with pytest.raises(OptionError, match=r"choose with --stream tsm/clip .* or --stream vacnn/pool"):
        bind(cache, [VECTORS], None)
    with pytest.raises(OptionError, match="does not hold feature maps"):
        bind(cache, [MAPS], None)


def test_of_joined_streams_all_lie_in_memory_or_none(tmp_path):
    table = clips_cache.rows(4, 2)
    vectors = {"tsm/clip": clips_cache.arrays(table), "vacnn/pool": clips_cache.arrays(table, seed=1)}
    cache = Cache(clips_cache.write(tmp_path, table, vectors))
    budget = MemoryBudget(6 * 5 * 8 * 2 + 10)  # one of them and a little
    parts = [CachedStream(cache, name, list(table["clip_id"]), CPU, budget) for name in vectors]
    assert not JoinedStream(parts).resident
    assert not any(part.resident for part in parts)


def test_streams_of_other_lengths_cannot_be_joined(tmp_path):
    table = clips_cache.rows(4, 2)
    vectors = {"tsm/clip": clips_cache.arrays(table, levels=4), "vacnn/pool": clips_cache.arrays(table, levels=5)}
    cache = Cache(clips_cache.write(tmp_path, table, vectors))
    with pytest.raises(OptionError, match="same levels"):
        JoinedStream([CachedStream(cache, n, list(table["clip_id"]), CPU, MemoryBudget(1e9)) for n in vectors])


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return {"logits": self.layer(x)}


def stage_that_measures(values, split="validation", **settings):
    """A stage whose held-out metric is what a list says."""
    values = iter(values)
    module = Linear()
    stream = MemoryStream(torch.randn(8, 1, 2, generator=torch.Generator().manual_seed(0)))
    items = BatchSource({"x": (stream, torch.arange(8))}, {"y": torch.zeros(8, dtype=torch.int64)})
    optimizer = SGD(module.parameters(), 1.0)
    return Stage(
        name="s",
        module=module,
        train=items,
        losses=lambda batch: {"L": module(batch["x"])["logits"].square().mean()},
        optimizer=optimizer,
        scheduler=ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0),
        epochs=9,
        batch_size=4,
        predict=predict_with(module),
        eval_sets={split: items},
        metrics_fn=lambda scores, y: {"auc": next(values)},
        monitor="auc",
        **settings,
    )


def train(tmp_path, stage, eval_every=1):
    log = Log(tmp_path, bars=False)
    return fit_stage(stage, data_on({}), tmp_path / "s", log, Interrupts(), 0.0, False, eval_every)


def test_training_stops_when_nothing_gets_better_and_the_rate_follows_the_plateau(tmp_path):
    summary = train(tmp_path, stage_that_measures([1, 5, 4, 5, 3, 9, 9], patience=3))
    assert (summary["epochs"], summary["best_epoch"], summary["best"], summary["monitor"]) == (5, 2, 5, "auc")
    assert [row["lr"] for row in summary["rows"]] == [1.0, 1.0, 1.0, 0.5, 0.25]


def test_a_stage_that_stops_early_hands_on_its_best_weights_and_others_their_last(tmp_path):
    for patience, kept in ((2, "best"), (0, "last")):
        stage = stage_that_measures([1, 5, 4, 3, 2, 1, 1, 1, 1], patience=patience)
        train(tmp_path / kept, stage)
        weights = {name: load_file(tmp_path / kept / "s" / f"{name}.safetensors") for name in ("best", "last")}
        assert not torch.equal(weights["best"]["layer.weight"], weights["last"]["layer.weight"])
        assert torch.equal(stage.module.layer.weight, weights[kept]["layer.weight"])


def test_scores_of_some_epochs_and_of_the_last(tmp_path):
    stage = replace(stage_that_measures([1, 5, 4, 5, 3]), scheduler=None)
    summary = train(tmp_path, stage, eval_every=2)
    assert [row.get("validation/auc") for row in summary["rows"]] == [None, 1, None, 5, None, 4, None, 5, 3]
    assert (summary["epochs"], summary["best_epoch"], summary["best"]) == (9, 4, 5)
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["validation/auc"].notna().tolist() == [epoch in (2, 4, 6, 8, 9) for epoch in history["epoch"]]


def test_between_scores_nothing_stops_early(tmp_path):
    stage = replace(stage_that_measures([5, 4, 3, 2], patience=3), scheduler=None)
    summary = train(tmp_path, stage, eval_every=2)
    assert (summary["epochs"], summary["best_epoch"]) == (6, 2)


def test_what_follows_single_epochs_needs_their_scores(tmp_path):
    with pytest.raises(OptionError, match=r"learning rate follows the epochs between two scores: set eval_every=1"):
        train(tmp_path, stage_that_measures([1]), eval_every=2)
    with pytest.raises(OptionError, match=r"patience=2 counts the epochs between two scores: set eval_every=1"):
        train(tmp_path, replace(stage_that_measures([1], patience=2), scheduler=None), eval_every=3)


def test_without_patience_all_epochs_are_trained(tmp_path):
    summary = train(tmp_path, stage_that_measures(range(9, 0, -1)))
    assert (summary["epochs"], summary["best_epoch"]) == (9, 1)


def test_a_module_that_needs_no_training_is_saved_as_it_is(tmp_path):
    stage = replace(stage_that_measures([]), epochs=0, optimizer=None, scheduler=None)
    summary = train(tmp_path, stage)
    assert (summary["epochs"], summary["rows"]) == (0, [])
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["best"] is None
    assert (tmp_path / "s" / "last.safetensors").exists()


def test_only_validation_selects(tmp_path):
    """Test clips are scored, but choose no epoch; early stopping and a plateau without validation clips are refused."""
    stage = stage_that_measures([1, 5, 4, 3, 2, 1, 1, 1, 1], split="test")
    stage = replace(stage, scheduler=MultiStepLR(stage.optimizer, []))
    summary = train(tmp_path, stage)
    assert (summary["selected_by"], summary["best"], summary["best_epoch"]) == ("", None, None)
    assert summary["steps"] == 9 * 2
    assert not (tmp_path / "s" / "best.safetensors").exists()
    with pytest.raises(OptionError, match="s: patience=2 needs validation clips"):
        train(tmp_path / "early", replace(stage, patience=2))
    assert not (tmp_path / "early" / "s").exists()
