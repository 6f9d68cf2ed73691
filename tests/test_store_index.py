"""The index: merged row by row, found again from the shards, and never mixing recipes unseen."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from store_cases import FEATURE, FLOW, RECIPES, RGB, SHAPE, add, key, manifest, name, payload, recipes, record, row

from kdcache.errors import ManifestError, StoreError
from kdcache.manifest import read_manifest, validate
from kdcache.recipe import digest
from kdcache.store import Cache, commit_shard, load_index, load_places, reindex, scan, update_index, verify

STREAMS = (FEATURE, FLOW, RGB)


def test_the_index_is_a_manifest_with_places(tmp_path):
    done = add(tmp_path, range(3))
    index = load_index(tmp_path)
    places = [f"{s}:{part}" for s in (FLOW, FEATURE, RGB) for part in ("shard", "row", "key", "digest")]
    assert list(index.columns) == [*row(0), *places]
    assert index[f"{FLOW}:row"].tolist() == [0, 1, 2]
    assert index[f"{FLOW}:key"].tolist() == [record(i).keys[FLOW] for i in range(3)]
    assert index[f"{RGB}:digest"].tolist() == done.digests[RGB]
    assert read_manifest(tmp_path / "manifest.csv")["clip_id"].tolist() == [name(i) for i in range(3)]


def test_rows_of_other_manifests_stay_and_known_ones_are_renewed(tmp_path):
    add(tmp_path, range(4))
    again = manifest(range(2, 6))
    again["label"] = pd.array([2, 2, 2, None], "Int64")
    again["weather"] = "rain"
    update_index(tmp_path, again, {})
    clips = Cache(tmp_path).clips
    assert clips["clip_id"].tolist() == [name(i) for i in range(6)]
    assert clips["label"].tolist()[:5] == [0, 1, 2, 2, 2]
    assert clips["label"].isna().tolist() == [False] * 5 + [True]
    assert clips["weather"].tolist() == ["", "", "rain", "rain", "rain", "rain"]
    assert Cache(tmp_path).has(FEATURE).tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(Cache(tmp_path).read(FEATURE, [name(3)])[0], payload(FEATURE, 3))


def test_what_columns_say_where_clips_lie_is_not_asked_for_each_column(tmp_path, monkeypatch):
    from kdcache.store import index

    asked = []
    monkeypatch.setattr(index, "location_columns", lambda columns: asked.append(columns) or [])
    wide = manifest(range(2)).assign(**{f"c{i}": "x" for i in range(300)})
    update_index(tmp_path, wide, {})
    update_index(tmp_path, wide.assign(c7="y"), {})
    assert Cache(tmp_path).clips["c7"].tolist() == ["y", "y"]
    assert len(asked) < 10


def test_a_clip_cut_anew_loses_its_old_places(tmp_path):
    add(tmp_path, range(5))
    again = manifest(range(5))
    again.loc[1, "stop_s"] += 0.5
    again.loc[4, "stop_s"] = 99.0  # was the source's end
    again.loc[2, "label"] = 1  # not a matter of the span
    update_index(tmp_path, again, {})
    assert Cache(tmp_path).has(FLOW).tolist() == [True, False, True, True, False]


def test_an_unchanged_index_is_not_written_again(tmp_path):
    done = add(tmp_path, range(5))
    before = (tmp_path / "manifest.csv").stat()
    update_index(tmp_path, manifest(range(5)), done.located)
    update_index(tmp_path, manifest(range(2, 4)), {})
    update_index(tmp_path, read_manifest(tmp_path / "manifest.csv"), {})  # a cache's own index is a manifest too
    after = (tmp_path / "manifest.csv").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_one_array_may_stand_under_two_names(tmp_path):
    done = commit_shard(tmp_path, [record(0)], recipes())
    twice = validate(pd.DataFrame([row(0), row(0) | {"clip_id": "alias"}]))
    update_index(tmp_path, twice, {s: d | {"alias": d[name(0)]} for s, d in done.located.items()})
    cache = Cache(tmp_path)
    np.testing.assert_array_equal(*cache.read(FEATURE, ["alias", name(0)]))
    assert cache.verify().ok


def _update(args: tuple[str, int]) -> None:
    folder, first = args
    for i in range(first, first + 8):
        add(Path(folder), range(i, i + 1), (FLOW,))


def test_two_processes_update_one_index(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(_update, [(str(tmp_path), 0), (str(tmp_path), 50)])
    cache = Cache(tmp_path)
    assert sorted(cache.clips["clip_id"]) == sorted(name(i) for i in (*range(8), *range(50, 58)))
    assert cache.has(FLOW).all()


def test_scan_and_index_find_the_same(tmp_path):
    add(tmp_path, range(4))
    done = add(tmp_path, range(4, 6), (FLOW,))
    found = scan(tmp_path)
    assert found == load_places(tmp_path, STREAMS)
    assert found[FLOW][record(5).keys[FLOW]] == (done.name, 1, done.digests[FLOW][1])
    assert {s: len(d) for s, d in found.items()} == {FEATURE: 4, FLOW: 6, RGB: 4}
    assert scan(tmp_path, [RGB, "idt"]) == {RGB: found[RGB], "idt": {}}
    assert scan(tmp_path / "nowhere", [RGB]) == {RGB: {}}


def test_places_of_shards_that_are_gone_do_not_count(tmp_path):
    add(tmp_path, range(2))
    add(tmp_path, range(2, 4))
    (tmp_path / "shard-00000.h5").unlink()
    assert set(load_places(tmp_path, [FLOW])[FLOW]) == {record(i).keys[FLOW] for i in (2, 3)}


def test_reindex_from_the_shards_alone_equals_the_index(tmp_path):
    add(tmp_path, range(4))
    add(tmp_path, range(4, 9), (FEATURE,))
    add(tmp_path, range(2, 7), (FLOW,))
    before = load_index(tmp_path)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(StoreError, match="run `kdcache reindex"):
        Cache(tmp_path)
    reindex(tmp_path)
    pd.testing.assert_frame_equal(load_index(tmp_path), before)


def test_reindex_takes_the_latest_cut_of_a_clip(tmp_path):
    add(tmp_path, range(3))
    new = record(1, (FLOW,), salt="new")
    new.clip["start_s"] = 0.25
    commit_shard(tmp_path, [new], recipes((FLOW,)))
    reindex(tmp_path)
    cache = Cache(tmp_path)
    assert cache.clips.set_index("clip_id").loc[name(1), "start_s"] == 0.25
    place = cache.clips.index[cache.clips["clip_id"] == name(1)][0]
    assert not cache.has(FEATURE)[place]  # the old feature was of the old span
    assert cache.has(FLOW)[place]


def test_an_index_saved_by_pandas_reads_once_that_is_accepted(tmp_path):
    add(tmp_path, range(3))
    update_index(tmp_path, manifest(range(4, 5)), {})
    table = pd.read_csv(tmp_path / "manifest.csv")
    table.to_csv(tmp_path / "manifest.csv", index=False)
    assert "shard-00000.h5,2.0," in (tmp_path / "manifest.csv").read_text()
    reindex(tmp_path, keep_edits=True)
    np.testing.assert_array_equal(Cache(tmp_path).read(FEATURE, [name(2)])[0], payload(FEATURE, 2))
    assert load_places(tmp_path, [FLOW]) == scan(tmp_path, [FLOW])
    (tmp_path / "manifest.csv").write_text((tmp_path / "manifest.csv").read_text().replace("h5,2,", "h5,two,"))
    (tmp_path / "manifest.csv.sha256").unlink()  # as in a cache of version 0.1
    with pytest.raises(StoreError, match=r"not a number .*'two'.*kdcache reindex"):
        Cache(tmp_path)


def test_a_folder_without_a_cache_is_told(tmp_path):
    with pytest.raises(StoreError, match="there is no cache here"):
        Cache(tmp_path)
    with pytest.raises(StoreError, match="no shards to index"):
        reindex(tmp_path)


def _with_two_recipes(folder: Path) -> tuple[str, str]:
    """Clips 0 to 3 under one recipe, then 2 to 5 under another; gives the digests."""
    add(folder, range(4), (FEATURE, FLOW))
    other = RECIPES[FEATURE] | {"views": {"size": 112}}
    items = [record(i, (FEATURE,), salt="112") for i in range(2, 6)]
    for item in items:
        item.arrays[FEATURE] = -item.arrays[FEATURE]
    done = commit_shard(folder, items, {FEATURE: other})
    update_index(folder, manifest(range(2, 6)), done.located)
    return digest(RECIPES[FEATURE]), digest(other)


def test_mixed_recipes_are_refused_and_one_can_be_chosen(tmp_path):
    first, second = _with_two_recipes(tmp_path)
    cache = Cache(tmp_path)
    with pytest.raises(StoreError, match=r"mixes recipes .*views\.size: 224 → 112") as caught:
        cache.read(FEATURE, [name(0)])
    for part in (first[:8], second[:8], "shard-00000.h5", "shard-00001.h5", "recipe=DIGEST"):
        assert part in str(caught.value)
    assert len(cache.read(FLOW, [name(2)])) == 1  # other streams are not concerned
    old = Cache(tmp_path, recipe=first)
    assert old.has(FEATURE).tolist() == [True] * 4 + [False] * 2
    np.testing.assert_array_equal(old.read(FEATURE, [name(3)])[0], payload(FEATURE, 3))
    new = Cache(tmp_path, recipe=[second[:6]])
    assert new.has(FEATURE).tolist() == [False] * 2 + [True] * 4
    np.testing.assert_array_equal(new.read(FEATURE, [name(3)])[0], -payload(FEATURE, 3))
    with pytest.raises(StoreError, match=f"recipe '{key(0)}' is not here; choose from .*{second[:8]}"):
        Cache(tmp_path, recipe=key(0))


def test_a_chosen_recipe_does_not_read_another_span(tmp_path):
    first, _ = _with_two_recipes(tmp_path)
    again = manifest(range(1))
    again.loc[0, "start_s"] = 0.05
    update_index(tmp_path, again, {})
    assert Cache(tmp_path, recipe=first).has(FEATURE).tolist() == [False] + [True] * 3 + [False] * 2


def test_shapes_that_differ_under_one_recipe_are_refused(tmp_path):
    add(tmp_path, range(2), (FEATURE,))
    item = record(2, (FEATURE,))
    item.arrays[FEATURE] = np.zeros((SHAPE[0], 1), np.float16)
    update_index(tmp_path, manifest(range(2, 3)), commit_shard(tmp_path, [item], recipes((FEATURE,))).located)
    with pytest.raises(StoreError, match=r"shard-00001\.h5: does not fit"):
        Cache(tmp_path).shape(FEATURE)


# --- the digest of the index ----------------------------------------------------------------------------------------


def _edit(folder: Path, old: str, new: str) -> None:
    path = folder / "manifest.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_sha256sum_reads_the_digest(tmp_path):
    add(tmp_path, range(3))
    expected = hashlib.sha256((tmp_path / "manifest.csv").read_bytes()).hexdigest()
    assert (tmp_path / "manifest.csv.sha256").read_text() == f"{expected}  manifest.csv\n"


EDITS = {
    "a label": (",0.1,0,", ",0.1,2,"),
    "an id": (name(1), name(1) + "x"),
    "a column": (f"{FLOW}:row", f"{FLOW}:sow"),
    "a text": ("left", "lift"),
}


@pytest.mark.parametrize(("old", "new"), EDITS.values(), ids=EDITS.keys())
def test_a_changed_index_is_refused_and_says_the_ways_out(tmp_path, old, new):
    add(tmp_path, range(3))
    before = load_index(tmp_path)
    _edit(tmp_path, old, new)
    message = r"manifest\.csv: has changed since kdcache wrote it.*reindex .* --keep-edits.*rebuilds it"
    for read in (
        Cache,
        load_index,
        lambda f: load_places(f, STREAMS),
        lambda f: update_index(f, before, {}),
    ):
        with pytest.raises(StoreError, match=message):
            read(tmp_path)
    report = verify(tmp_path)
    assert not report.ok
    assert "has changed since kdcache wrote it" in report.index or "lacks its column" in report.index
    assert verify(tmp_path, repair=True).repaired
    pd.testing.assert_frame_equal(load_index(tmp_path), before)
    assert verify(tmp_path).ok


def test_edits_are_kept_when_that_is_asked_for(tmp_path):
    add(tmp_path, range(3))
    _edit(tmp_path, *EDITS["a text"])
    reindex(tmp_path, keep_edits=True)
    assert Cache(tmp_path).clips["hand"].tolist() == ["lift", "left", "left"]
    assert verify(tmp_path).ok
    _edit(tmp_path, *EDITS["a column"])
    with pytest.raises(StoreError, match=rf"stream '{FLOW}' lacks its column '{FLOW}:row'"):
        reindex(tmp_path, keep_edits=True)


def test_a_cache_without_a_digest_works_and_gets_one(tmp_path):
    add(tmp_path, range(3))
    (tmp_path / "manifest.csv.sha256").unlink()
    _edit(tmp_path, *EDITS["a text"])
    assert Cache(tmp_path).has(FLOW).all()
    assert verify(tmp_path).ok
    add(tmp_path, range(3, 4))
    _edit(tmp_path, "lift", "left")
    with pytest.raises(StoreError, match="has changed"):
        Cache(tmp_path)


@pytest.mark.parametrize("step", range(3))
def test_a_writer_killed_between_index_and_digest_leaves_both_whole(tmp_path, monkeypatch, step):
    """Old and new digests are listed while the index changes."""
    add(tmp_path, range(3))
    replace, calls = os.replace, []

    def killed(*args):
        if len(calls) == step:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    with monkeypatch.context() as patched:
        patched.setattr("kdcache.files.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            add(tmp_path, range(3, 5))
    assert len(Cache(tmp_path).clips) == (5 if step == 2 else 3)
    assert verify(tmp_path).ok == (step == 2) or not verify(tmp_path).index
    add(tmp_path, range(5, 6))
    assert len((tmp_path / "manifest.csv.sha256").read_text().splitlines()) == 1
    assert verify(tmp_path).ok


@pytest.mark.parametrize("cell", ["../shard-00000.h5", "/etc/shard-00000.h5", "shard-00000.h5\\x", "shard-1.h5"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, cell):
    add(tmp_path, range(1))
    _edit(tmp_path, "shard-00000.h5", cell)
    with pytest.raises(StoreError, match="is not the name of a shard"):
        reindex(tmp_path, keep_edits=True)
    (tmp_path / "manifest.csv.sha256").unlink()
    with pytest.raises(StoreError, match="is not the name of a shard; run `kdcache reindex"):
        Cache(tmp_path)
    assert "is not the name of a shard" in verify(tmp_path).index


@pytest.mark.parametrize("number", ["1" + "0" * 30, "-1", "٣", "1e3"])
def test_rows_are_numbers_that_a_shard_can_have(tmp_path, number):
    add(tmp_path, range(1), (FLOW,))
    (tmp_path / "manifest.csv.sha256").unlink()
    _edit(tmp_path, "shard-00000.h5,0,", f"shard-00000.h5,{number},")
    with pytest.raises(StoreError, match="a row of a shard is not a number"):
        Cache(tmp_path)
    assert "not a number" in verify(tmp_path).index


def test_an_index_is_held_against_the_spans_and_digests_of_the_shards(tmp_path):
    """Without a digest of its own, too: what clips were cut from, and which array lies where."""
    add(tmp_path, range(3), (FLOW,))
    (tmp_path / "manifest.csv.sha256").unlink()
    whole = (tmp_path / "manifest.csv").read_text()
    _edit(tmp_path, ",0.1,", ",0.2,")
    assert [d.reason for d in verify(tmp_path).lost] == ["shard-00000.h5 holds another span there"]
    swapped = whole.replace("h5,0,", "h5,7,").replace("h5,1,", "h5,0,").replace("h5,7,", "h5,1,")
    (tmp_path / "manifest.csv").write_text(swapped)
    assert len(verify(tmp_path).lost) == 2
    with pytest.raises(StoreError, match="does not fit the index"):
        Cache(tmp_path).read(FLOW, [name(0)])


BROKEN = {"empty": b"", "binary": b"\xff\xfe\x00", "quote": b'a,"b'}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_index_is_named_to_all(tmp_path, content):
    add(tmp_path, range(2))
    (tmp_path / "manifest.csv.sha256").unlink()
    (tmp_path / "manifest.csv").write_bytes(content)
    updated = manifest(range(2))
    for read in (Cache, lambda f: update_index(f, updated, {}), lambda f: load_places(f, STREAMS)):
        with pytest.raises((StoreError, ManifestError), match=r"manifest\.csv"):
            read(tmp_path)
