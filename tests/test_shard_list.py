"""``shards.json``: shards of which nothing is read stay closed, and a list that is wrong serves nothing wrong."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from store_cases import FEATURE, FLOW, RECIPES, add, flip, manifest, name, payload, record

from kdcache.errors import StoreError
from kdcache.seals import is_sealed
from kdcache.store import Cache, commit_shard, integrity, reindex, scan, update_index, verify
from kdcache.store.find import CachedPlaces, indexed_places, places_beyond
from kdcache.store.indexed import Indexed
from kdcache.store.set_aside import Damage, save_set_aside
from kdcache.store.shard import Shard
from kdcache.store.shard_list import LIST, ShardSummary, listed_shards, read_list, save_list

STREAMS = (FEATURE, FLOW)
SHARDS = [f"shard-{i:05d}.h5" for i in range(3)]


@pytest.fixture
def cache(tmp_path):
    """Three shards of three clips."""
    for i in range(3):
        add(tmp_path, range(3 * i, 3 * i + 3), STREAMS)
    return tmp_path


def spoil(path) -> None:
    """Nothing is left of a shard but its size: whoever opens it refuses it."""
    path.write_bytes(bytes(path.stat().st_size))


def everything(folder, streams=STREAMS):
    """Places as planning finds them: of the index, and of shards beyond it."""
    index = Indexed.of(folder)
    known, beyond = indexed_places(index, streams), places_beyond(folder, index, streams)
    return {s: dict(CachedPlaces(known[s], beyond[s])) for s in streams}, beyond


def test_what_is_listed_is_what_the_shards_hold(cache):
    assert is_sealed(cache / LIST)
    found = read_list(cache)
    assert found == {shard: ShardSummary.of(Shard.open(cache / shard)) for shard in SHARDS}
    assert found[SHARDS[0]].shapes == {FEATURE: [2, 5, 2, 3, 3], FLOW: []}
    (cache / LIST).unlink()
    reindex(cache)
    assert read_list(cache) == found


def test_shards_of_which_nothing_is_read_stay_closed(cache):
    spoil(cache / SHARDS[1])
    opened = Cache(cache)
    assert opened.recipe(FEATURE) == RECIPES[FEATURE]
    assert opened.has(FEATURE).all()
    np.testing.assert_array_equal(opened.read(FEATURE, [name(8), name(0)])[0], payload(FEATURE, 8))
    for _ in range(2):
        with pytest.raises(StoreError, match=SHARDS[1]):
            opened.read(FEATURE, [name(4)])


@pytest.mark.parametrize("how", ["none", "cut", "damaged", "another size", "no list", "a folder"])
def test_a_shard_that_no_list_vouches_for_is_opened(cache, how, caplog):
    """As in caches of version 0.1: the damage is found at once."""
    path = cache / LIST
    spoil(cache / SHARDS[1])
    if how == "another size":
        (cache / SHARDS[1]).write_bytes(b"")
    elif how == "damaged":
        flip(path, 200)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif how == "no list":
        path.write_text(json.dumps({"shards": {SHARDS[0]: {"size": []}}}))
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
    with pytest.raises(StoreError, match=SHARDS[1]):
        Cache(cache).recipe(FEATURE)
    with pytest.raises(StoreError, match=SHARDS[1]):
        places_beyond(cache, Indexed.of(cache), STREAMS)
    if how in ("cut", "damaged", "no list", "a folder"):
        assert LIST in caplog.text
        assert "kdcache reindex" in caplog.text or how == "a folder"


def test_a_wrong_list_serves_nothing_wrong(cache):
    """Another recipe, another shape, and arrays that the index does not mean."""
    right = read_list(cache)
    one = right[SHARDS[1]]
    save_list(cache, right | {SHARDS[1]: replace(one, recipes={FEATURE: "0" * 32, FLOW: one.recipes[FLOW]})})
    with pytest.raises(StoreError, match=rf"{SHARDS[1]}: does not fit the index; run `kdcache reindex"):
        Cache(cache).recipe(FEATURE)
    save_list(cache, right | {SHARDS[1]: replace(one, shapes={FEATURE: [1], FLOW: []})})
    with pytest.raises(StoreError, match=rf"{SHARDS[1]}: does not fit"):
        Cache(cache).shape(FEATURE)
    other = commit_shard(
        cache, [record(i, STREAMS) for i in range(3)], {FLOW: RECIPES[FLOW], FEATURE: RECIPES[FEATURE] | {"views": {}}}
    )
    (cache / other.name).rename(cache / SHARDS[1])
    save_list(cache, right | {SHARDS[1]: replace(one, size=(cache / SHARDS[1]).stat().st_size)})
    changed = Cache(cache)
    assert changed.recipe(FEATURE) == RECIPES[FEATURE]
    for stream in STREAMS:
        with pytest.raises(StoreError, match=rf"{SHARDS[1]}: does not fit"):
            changed.read(stream, [name(4)])
    reindex(cache)
    with pytest.raises(StoreError, match="mixes recipes"):
        Cache(cache).recipe(FEATURE)


def test_new_work_is_planned_from_the_index(cache):
    """No shard is opened whose every row the index points at, in each of the streams asked for."""
    whole = scan(cache, STREAMS)
    for shard in SHARDS:
        spoil(cache / shard)
    found, beyond = everything(cache)
    assert found == whole
    assert not any(beyond.values())


def test_what_the_index_does_not_point_at_is_found_in_the_shards(cache):
    """Runs that were killed, arrays of another recipe, arrays that were set aside, shards that went."""
    commit_shard(cache, [record(i, STREAMS) for i in range(20, 22)], {s: RECIPES[s] for s in STREAMS})
    again = [record(i, (FEATURE,), salt="112") for i in range(2)]
    done = commit_shard(cache, again, {FEATURE: RECIPES[FEATURE] | {"views": {"size": 112}}})
    update_index(cache, manifest(range(2)), done.located)
    save_set_aside(cache, [Damage(SHARDS[1], FLOW, 1, name(4), "a test")])
    found, beyond = everything(cache)
    assert found == scan(cache, STREAMS)
    assert {place[0] for place in beyond[FEATURE].values()} == {SHARDS[0], "shard-00003.h5"}
    assert len(listed_shards(cache, ["shard-00003.h5"])) == 1  # it was opened, and is listed now
    (cache / SHARDS[2]).unlink()
    assert everything(cache)[0] == scan(cache, STREAMS)
    (cache / "manifest.csv").unlink()
    (cache / "manifest.csv.sha256").unlink()
    assert everything(cache)[0] == scan(cache, STREAMS)


def test_a_dry_run_lists_nothing(cache):
    (cache / LIST).unlink()
    places_beyond(cache, Indexed.of(cache), STREAMS, note=False)
    assert not (cache / LIST).exists()
    places_beyond(cache, Indexed.of(cache), STREAMS)
    assert set(read_list(cache)) == set(SHARDS)


def test_a_list_that_cannot_be_written_costs_only_time(cache, monkeypatch, caplog):
    before = (cache / LIST).read_bytes()

    def refused(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdcache.store.shard_list.write_json", refused)
    add(cache, range(9, 11), STREAMS)
    assert "No space left" in caplog.text
    assert (cache / LIST).read_bytes() == before
    assert Cache(cache).has(FLOW).all()
    assert verify(cache).ok


def test_verify_names_a_wrong_list_and_repair_mends_it(cache):
    right = read_list(cache)
    save_list(cache, right | {SHARDS[1]: replace(right[SHARDS[1]], clips=2)})
    report = verify(cache, progress=False)
    assert not report.ok
    assert SHARDS[1] in report.listing
    assert "list of shards: " in str(report)
    verify(cache, repair=True, progress=False)
    assert verify(cache, progress=False).ok
    assert read_list(cache) == right
    flip(cache / LIST, 200)
    assert LIST in verify(cache, progress=False).listing
    verify(cache, repair=True, progress=False)
    assert read_list(cache) == right


def test_verify_holds_the_tables_of_one_shard_at_a_time(cache, monkeypatch):
    class Held(dict):
        """Tables that can be watched."""

    alive: list[weakref.ref[Held]] = []
    others: list[int] = []
    real = integrity.open_shard

    def watched(path):
        others.append(sum(each() is not None for each in alive))
        shard, tables = real(path)
        held = Held(tables)
        alive.append(weakref.ref(held))
        return shard, held

    monkeypatch.setattr(integrity, "open_shard", watched)
    assert verify(cache, progress=False).ok
    assert others == [0] * 2 * len(SHARDS)
