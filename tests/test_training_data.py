"""From a cache to batches: pairs, splits, hold-out, plans, held and streamed."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pairs_cache
import pytest
import torch

from kdcache.data import loader as feed
from kdcache.data.pairs import pairs
from kdcache.data.stream import CachedStream, MemoryBudget
from kdcache.errors import ManifestError, OptionError, StoreError
from kdcache.methods.contract import UNLABELLED, BatchSource
from kdcache.store import Cache

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _logged(caplog):
    caplog.set_level("INFO", "kdcache")
    global notes
    notes = caplog


def joined(table, cached=None, tau=None):
    notes.clear()
    cached = np.ones(len(table), bool) if cached is None else cached
    return pairs(table, cached, tau, 0.2), list(notes.messages)


def test_pairs_are_tied_with_their_labels_and_splits():
    clips, notes = joined(pairs_cache.rows(8, 4).sample(frac=1, random_state=0))
    train, validation = clips.splits["train"], clips.splits["validation"]
    assert validation.names == ["p003", "p007"]
    assert len(train) == 10
    assert [clips.clip_ids[r] for r in validation.rows["observed"]] == ["p003-observed", "p007-observed"]
    assert [clips.clip_ids[r] for r in validation.rows["action"]] == ["p003-action", "p007-action"]
    assert clips.classes == {"label": [0, 5, 10], "verb": [0, 1]}
    assert validation.labels["label"].tolist() == [0, 1]  # pairs 3 and 7: labels 0 and 5
    assert (train.labels["label"] == UNLABELLED).sum() == 4
    assert notes == []


def test_incomplete_pairs_are_counted_and_left_out_of_training_but_testing_needs_only_what_is_seen():
    table = pairs_cache.rows(8)
    missing = table["clip_id"].isin(["p000-action", "p001-observed", "p003-action", "p007-observed"])
    clips, notes = joined(table, ~missing.to_numpy())
    assert clips.splits["train"].names == ["p002", "p004", "p005", "p006"]
    assert clips.splits["validation"].names == ["p003"]
    assert clips.splits["validation"].rows["action"].tolist() == [-1]
    assert notes == ["left out: 3 of 8 pairs have a clip that is not cached (p000, p001, p007)"]


def test_without_splits_a_fifth_is_held_out_by_source_and_always_the_same():
    table = pairs_cache.rows(80, 8, split="")
    clips, notes = joined(table)
    again, _ = joined(table.sample(frac=1, random_state=1))
    assert clips.splits["validation"].names == again.splits["validation"].names
    source = table.set_index("pair")["source"].to_dict()
    train = {source[n] for n in clips.splits["train"].names}
    held = {source[n] for n in clips.splits["validation"].names}
    assert not train & held
    labelled = (clips.splits["validation"].labels["label"] != UNLABELLED).sum()
    assert 0.2 * 80 <= labelled < 0.4 * 80
    assert notes[0].startswith(f"validation: the manifest names none, so {labelled} of 80 labelled ones")


def test_groups_and_subjects_are_held_out_before_sources():
    table = pairs_cache.rows(40, split="")
    number = table["pair"].str[1:].astype(int)
    clips, notes = joined(table.assign(subject=(number % 3).astype(str), group=(number % 5).astype(str)))
    held = {int(n[1:]) % 5 for n in clips.splits["validation"].names}
    assert len(held) == 1
    assert "(group " in notes[0]


def test_several_anticipation_times_must_be_chosen_from():
    one, two = pairs_cache.rows(8, tau="1.0"), pairs_cache.rows(8, tau="2.0")
    two[["clip_id", "pair"]] = two[["clip_id", "pair"]].map(lambda name: "q" + name)
    both = pairs_cache.validate(pairs_cache.pd.concat([one, two]))
    with pytest.raises(OptionError, match=r"several anticipation times \(1, 2 s\): choose with tau_s="):
        joined(both)
    clips, _ = joined(both, tau=2.0)
    assert clips.splits["validation"].names == ["qp003", "qp007"]
    with pytest.raises(OptionError, match=r"tau_s=3: the cache holds pairs for 1, 2 s"):
        joined(both, tau=3.0)
    with pytest.raises(OptionError, match="no column tau"):
        joined(pairs_cache.rows(8), tau=1.0)


def test_caches_without_usable_pairs_are_refused_with_what_to_do():
    table = pairs_cache.rows(8)
    with pytest.raises(OptionError, match="no pairs: it needs clips tied by `pair`"):
        joined(table.drop(columns="pair"))
    with pytest.raises(OptionError, match="no pairs"):
        joined(table.assign(role=""))
    with pytest.raises(OptionError, match="No example has a label"):
        joined(table.assign(label=None, verb=None))
    with pytest.raises(OptionError, match="No complete example of split validation"):
        joined(table, (table["split"] == "train").to_numpy())
    with pytest.raises(OptionError, match="No pair has split train"):
        joined(table.assign(split="test"))
    with pytest.raises(OptionError, match="one source"):
        joined(table.assign(split="", source="a.avi"))


def test_pairs_that_contradict_themselves_are_all_named():
    table = pairs_cache.rows(8)
    table.loc[0, "label"] = 10
    table.loc[2, "split"] = "test"
    table.loc[5, "pair"] = "p005"
    with pytest.raises(ManifestError) as caught:
        joined(table)
    assert len(caught.value.problems) == 3
    for text in (
        "p005 has another action clip",
        "p000: its clips disagree on label",
        "p001: its clips disagree on split",
    ):
        assert text in str(caught.value)


def test_val_means_validation_and_other_splits_are_kept_aside():
    table = pairs_cache.rows(8).replace({"split": {"validation": "val"}})
    table.loc[table["pair"] == "p000", "split"] = "s1"
    clips, _ = joined(table)
    assert sorted(clips.splits) == ["s1", "train", "validation"]


class Numbers:
    """A stream whose every value tells its row and view."""

    views, shape, resident, available = 3, (2,), True, None

    def fetch(self, rows, views, keys):
        return torch.stack([rows, views], 1)

    def to_device(self, fetched):
        return fetched.float()


def test_a_shuffled_pass_covers_every_item_once_and_depends_on_its_numbers_alone():
    items = BatchSource({"x": (Numbers(), torch.arange(10))})
    plan = feed.shuffled(items, 4, 3, np.random.default_rng([7, 1]))
    assert [len(index) for index, _ in plan] == [4, 4, 2]
    assert sorted(torch.cat([index for index, _ in plan]).tolist()) == list(range(10))
    again = feed.shuffled(items, 4, 3, np.random.default_rng([7, 1]))
    assert all(torch.equal(a, b) and torch.equal(v, w) for (a, v), (b, w) in zip(plan, again, strict=True))
    views = torch.cat([v for seed in range(20) for _, v in feed.shuffled(items, 4, 3, np.random.default_rng(seed))])
    assert views.bincount(minlength=3).min() > 40


@pytest.mark.parametrize("extra", [1, 3, 7, 40])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_every_batch_is_half_extra_and_extras_come_round_evenly(extra, batch_size):
    items = BatchSource({"x": (Numbers(), torch.arange(9 + extra))}, num_unlabeled=extra)
    plan = feed.shuffled(items, batch_size, 1, np.random.default_rng(0))
    own = max(1, batch_size // 2)
    seen: Counter[int] = Counter()
    for index, _ in plan:
        main = int((index < 9).sum())
        seen.update(index.tolist())
        assert main >= 1
        if main == own:
            assert len(index) - main == max(1, batch_size - own)
    assert [seen[i] for i in range(9)] == [1] * 9
    drawn = [seen[9 + i] for i in range(extra)]
    assert max(drawn) - min(drawn) <= 1


def test_batches_bring_inputs_fields_and_views():
    items = BatchSource(
        {"x": (Numbers(), torch.tensor([5, 6, 7])), "z": (Numbers(), torch.tensor([1, 2, 3]))},
        {"y": torch.tensor([9, 8, 7])},
    )
    (first, second) = feed.feed(items, feed.in_order(items, 2, 1), CPU)
    assert first["x"].tolist() == [[5, 1], [6, 1]]
    assert second["z"].tolist() == [[3, 1]]
    assert first["y"].tolist() == [9, 8]
    assert second["view"].tolist() == [1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return pairs_cache.cache(tmp_path_factory.mktemp("small"), 8, views=2)


def test_held_and_streamed_give_the_same_batches(small):
    cache = Cache(small)
    ids = list(cache.clips["clip_id"])[::-1]
    size = 16 * 2 * 480 * 3 * 4 * 4 * 2
    streamed, held = (
        CachedStream(cache, pairs_cache.STREAM, ids, CPU, MemoryBudget(budget)) for budget in (size - 1, size + 7)
    )
    assert (streamed.nbytes, streamed.resident, streamed.fits(1)) == (size, False, False)
    assert (held.nbytes, held.resident, held.fits(7), held.fits(8)) == (size, True, True, False)
    for stream in (streamed, held):
        items = BatchSource({"x": (stream, torch.arange(16))})
        plan = feed.shuffled(items, 5, 2, np.random.default_rng(0))
        for (index, views), batch in zip(plan, feed.feed(items, plan, CPU), strict=True):
            expected = cache.read(pairs_cache.STREAM, [ids[i] for i in index])[np.arange(len(index)), views.numpy()]
            assert batch["x"].dtype == torch.float32
            assert (batch["x"].numpy() == expected.astype(np.float32)).all()


def test_reduced_maps_are_the_same_held_and_streamed(small):
    cache = Cache(small)
    ids = list(cache.clips["clip_id"])
    rows, views = torch.tensor([3, 0, 9, 3]), torch.tensor([1, 0, 1, 0])
    maps = cache.read(pairs_cache.STREAM, ids)[rows.numpy(), views.numpy()].astype(np.float32)
    expected = maps.mean((2, 3, 4)).astype(np.float16)
    for budget in (0, 10**9):
        whole = CachedStream(cache, pairs_cache.STREAM, ids, CPU, MemoryBudget(budget))
        stream = whole.map(average)
        assert stream is whole.map(average)
        assert (stream.shape, stream.resident) == ((480,), budget > 0)
        np.testing.assert_allclose(stream.to_device(stream.fetch(rows, views, rows)).numpy(), expected, rtol=2e-3)


def average(x):
    return x.mean((1, 2, 3))


def test_errors_of_the_reading_thread_are_raised_and_threads_end(small, tmp_path):
    cache = Cache(small)
    ids = [*cache.clips["clip_id"][:-1], "nowhere"]
    streamed = CachedStream(cache, pairs_cache.STREAM, ids, CPU, MemoryBudget(0))
    items = BatchSource({"x": (streamed, torch.arange(16))})
    with pytest.raises(StoreError, match="nowhere"):
        list(feed.feed(items, feed.in_order(items, 4), CPU))
    batches = feed.feed(items, feed.in_order(items, 1), CPU)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "kdcache-prefetch"]
