"""What is set aside as damaged is out of use: no writer of the index points at it, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from store_cases import FEATURE, FLOW, RGB, add, flip, manifest, name, payload, recipes, record
from test_store_faults import offset_of

from kdcache.errors import StoreError
from kdcache.store import Cache, Committed, commit_shard, load_index, load_places, reindex, scan, update_index, verify

SHARD = "shard-00000.h5"


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture
def cache(tmp_path) -> tuple[Path, Committed]:
    """Five clips in one shard; the flow of clip 2 has one byte changed."""
    done = add(tmp_path, range(5))
    flip(tmp_path / SHARD, offset_of(tmp_path / SHARD, FLOW, 2))
    return tmp_path, done


def flow_of_2(folder: Path) -> list[tuple[str, int]]:
    """Where the index, the places and the scan say that the flow of clip 2 lies."""
    index = load_index(folder).set_index("clip_id")
    key = record(2).keys[FLOW]
    cells = (index.loc[name(2), f"{FLOW}:shard"], index.loc[name(2), f"{FLOW}:row"])
    found = [cells] if cells[0] else []
    return found + [
        places[FLOW][key][:2] for places in (load_places(folder, [FLOW]), scan(folder)) if key in places[FLOW]
    ]


@pytest.mark.parametrize("step", ["save_set_aside", "drop_locations"])
def test_a_repair_killed_before_either_step_leaves_nothing_to_believe(cache, monkeypatch, step):
    folder, _ = cache
    with monkeypatch.context() as patched:
        patched.setattr(f"kdcache.store.integrity.{step}", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            verify(folder, repair=True)
    report = verify(folder)
    assert not report.ok
    assert [d.clip_id for d in report.fresh] == [name(2)]
    assert report.set_aside == []
    update_index(folder, manifest(range(5)), {})  # what an extract that finds nothing to do does
    if step == "drop_locations":  # it was listed already: that is enough for all who write the index
        assert flow_of_2(folder) == []
        assert verify(folder).ok
    repaired = verify(folder, repair=True)
    assert repaired.ok == (step == "drop_locations")
    assert flow_of_2(folder) == []
    after = verify(folder)
    assert after.ok
    assert [d.clip_id for d in after.set_aside] == [name(2)]


def test_what_is_set_aside_is_known_by_its_place_whatever_the_reason(cache):
    folder, _ = cache
    verify(folder, repair=True)
    path = folder / "damaged.csv"
    path.write_text(path.read_text().replace("its bytes have changed since they were written", "a read failed"))
    report = verify(folder)
    assert report.ok
    assert [d.clip_id for d in report.set_aside] == [name(2)]


def test_an_extraction_that_ran_meanwhile_does_not_put_the_place_back(cache):
    folder, done = cache
    verify(folder, repair=True)
    update_index(folder, manifest(range(5)), done.located)  # planned before the repair
    assert flow_of_2(folder) == []
    assert Cache(folder).has(FEATURE).all()
    assert verify(folder).ok
    reindex(folder)
    assert flow_of_2(folder) == []
    add(folder, range(2, 3), (FLOW,))
    assert set(flow_of_2(folder)) == {("shard-00001.h5", 0)}
    np.testing.assert_array_equal(Cache(folder).read(FLOW, [name(2)])[0], payload(FLOW, 2))
    assert verify(folder).ok


def test_places_in_a_shard_that_is_gone_are_not_indexed(cache):
    folder, done = cache
    (folder / SHARD).write_bytes(b"")
    verify(folder, repair=True)  # renames it
    update_index(folder, manifest(range(5)), done.located)
    assert load_index(folder)[f"{RGB}:row"].isna().all()
    assert verify(folder).ok


def test_a_shard_published_while_verify_reads_is_not_lost(cache, monkeypatch):
    """The index names it before the check of the index, after the list of shards was made."""
    folder, _ = cache
    from kdcache.store import integrity

    check = integrity._check_index
    fresh: list[Committed] = []

    def late(*args):
        if not fresh:
            fresh.append(commit_shard(folder, [record(i) for i in range(5, 7)], recipes()))
            update_index(folder, manifest(range(7)), fresh[0].located)
        return check(*args)

    monkeypatch.setattr(integrity, "_check_index", late)
    report = verify(folder, repair=True)
    assert report.lost == []
    assert Cache(folder).has(FEATURE).sum() == 7
    assert Cache(folder).has(FLOW).sum() == 6


def test_two_repairs_at_once_keep_each_others_lists(cache, monkeypatch):
    folder, _ = cache
    from kdcache.store import integrity

    repair, path = integrity._repair, folder / SHARD

    def another_first(*args):
        monkeypatch.setattr(integrity, "_repair", repair)
        flip(path, offset_of(path, FEATURE, 3))  # after the first has read it
        verify(folder, repair=True)
        repair(*args)

    monkeypatch.setattr(integrity, "_repair", another_first)
    verify(folder, repair=True)
    after = verify(folder)
    assert after.ok
    assert {(d.stream, d.clip_id) for d in after.set_aside} == {(FLOW, name(2)), (FEATURE, name(3))}


def test_reindex_of_no_folder(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        reindex(tmp_path / "none")
