"""An index that grows: what is told column by column is what going through it clip by clip tells."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from store_cases import FEATURE, FLOW, add, manifest, name, recipes, record

from kdcache.extraction.plan import make_plan
from kdcache.extraction.settled import settled
from kdcache.manifest import read_manifest, validate
from kdcache.recipe import clip_key, keys_of, span_text
from kdcache.store import commit_shard, load_index, load_places, update_index
from kdcache.store.indexed import Indexed, PlacesByKey
from kdcache.store.set_aside import Damage, save_set_aside
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

NAMES = ["i3d-flow/mixed4a", "i3d-rgb/mixed4a"]
WEIGHTS = {"i3d-rgb": "random:0", "i3d-flow": "random:0"}
PRINTS = {f"v{i}.mp4": f"{i:032x}" for i in range(5)}
CLIPS = 40


def clips(numbers) -> pd.DataFrame:
    """Rows of a manifest, some of them without a stop or a label."""
    rows = [
        {
            "clip_id": f"clip-{i}",
            "source": f"v{i % 5}.mp4",
            "start_s": i / 7,
            "stop_s": None if i % 6 == 0 else i / 7 + 1,
            "label": None if i % 4 == 0 else i % 3,
        }
        for i in numbers
    ]
    return validate(pd.DataFrame(rows))


@pytest.fixture
def cache(tmp_path):
    """A folder in which all clips are indexed under the keys of two streams; its shards are names."""
    for shard in range(2):
        (tmp_path / f"shard-{shard:05d}.h5").touch()
    streams, rows = resolve(NAMES, StreamSettings(), WEIGHTS), clips(range(CLIPS))
    located = {}
    for stream in streams:
        spans = zip(rows["clip_id"], rows["source"], rows["start_s"], rows["stop_s"], strict=True)
        located[stream.name] = {
            clip: (f"shard-{i % 2:05d}.h5", i // 2, clip_key(stream.digest, PRINTS[source], start, stop), f"{i:032x}")
            for i, (clip, source, start, stop) in enumerate(spans)
        }
    update_index(tmp_path, rows, located)
    return tmp_path, streams, rows


def both(folder, streams, rows, prints=PRINTS):
    """What is settled, and for each row whether a plan finds all of it where the index has it."""
    index = Indexed.of(folder)
    paths = {source: f"/{source}" for source in prints}
    plan = make_plan(rows, rows["source"], streams, prints, paths, load_places(folder, NAMES), {}, lambda s, r: {})
    table = index.frame(index.table.names).set_index("clip_id")

    def held(clip) -> bool:
        entries = {s: plan.located[s].get(clip) for s in NAMES}
        parts = ("shard", "row", "key", "digest")
        return clip in table.index and all(
            entry is not None and entry == tuple(table.loc[clip, f"{s}:{part}"] for part in parts)
            for s, entry in entries.items()
        )

    return settled(rows, rows["source"], streams, prints, index).tolist(), [held(clip) for clip in rows["clip_id"]]


def test_all_is_settled_where_nothing_has_changed(cache):
    folder, streams, rows = cache
    assert both(folder, streams, rows) == ([True] * CLIPS, [True] * CLIPS)
    some = rows.sample(frac=1, random_state=0, ignore_index=True).iloc[:30]
    assert both(folder, streams, some) == ([True] * 30, [True] * 30)


def test_what_has_changed_is_not_settled(cache):
    folder, streams, rows = cache
    (folder / "shard-00001.h5").rename(folder / "shard-00001.h5.damaged")
    save_set_aside(folder, [Damage("shard-00000.h5", NAMES[0], 1, "clip-2", "a test")])
    found, known = both(folder, streams, rows)
    assert found == known == [i % 2 == 0 and i != 2 for i in range(CLIPS)]
    rows = clips([*range(CLIPS), 50, 52])
    rows.loc[4, "stop_s"] = 99.0
    rows.loc[6, "start_s"] = np.nan
    rows.loc[8, "source"] = "v0.mp4"
    found, known = both(folder, streams, rows, PRINTS | {"v1.mp4": "f" * 32})
    assert found == known
    changed = {2, 4, 6, 8, *range(1, CLIPS, 5)}
    assert np.flatnonzero(found).tolist() == [i for i in range(0, CLIPS, 2) if i not in changed]


def test_a_source_under_another_name_is_found_and_indexed_anew(cache):
    """Its arrays are those of the same content; the index still has the old name."""
    folder, streams, rows = cache
    rows["source"] = rows["source"].replace("v3.mp4", "w3.mp4")
    found, known = both(folder, streams, rows, PRINTS | {"w3.mp4": PRINTS["v3.mp4"]})
    assert known == [True] * CLIPS
    assert found == [i % 5 != 3 for i in range(CLIPS)]


def test_places_by_key_are_those_of_the_index(cache):
    folder, _, rows = cache
    twice = rows.iloc[:1].assign(clip_id="again")
    entry = load_index(folder).iloc[0]
    place = ("shard-00001.h5", 7, entry[f"{NAMES[0]}:key"], "1" * 32)
    update_index(folder, twice, {NAMES[0]: {"again": place}})
    found, table = PlacesByKey(Indexed.of(folder), NAMES[0]), load_index(folder)
    known = {}
    for row in table.itertuples(index=False):
        at = dict(zip(table.columns, row, strict=True))
        known[at[f"{NAMES[0]}:key"]] = tuple(at[f"{NAMES[0]}:{part}"] for part in ("shard", "row", "digest"))
    assert dict(found) == known == load_places(folder, NAMES[:1])[NAMES[0]]
    assert len(found) == CLIPS
    assert found[place[2]] == (place[0], place[1], place[3])  # the later one counts
    assert [found.get(text) for text in ("", "0" * 32, "é" * 16)] == [None] * 3


@pytest.mark.parametrize("seed", range(4))
def test_rows_behind_others_are_those_of_a_new_index(tmp_path, monkeypatch, seed):
    """The same calls, once with rows added behind those that stay, once with the whole index written each time."""
    rng = random.Random(seed)
    calls = []
    for _ in range(8):
        numbers = sorted(rng.sample(range(12), rng.randint(1, 5)))
        rows = manifest(numbers)
        if rng.random() < 0.3:
            rows.loc[0, "label"] = 2
        if rng.random() < 0.2:
            rows.loc[0, "start_s"] = 0.01
        if rng.random() < 0.2:
            rows["weather"] = rng.choice(["rain", "sun, and wind"])
        calls.append((rows, rng.choice([(), (FEATURE,), (FEATURE, FLOW)]), rng.random() < 0.3))
    for folder, quick in ((tmp_path / "a", True), (tmp_path / "b", False)):
        for rows, streams, wanted in calls:
            items = [record(i, streams) for i in range(12) if name(i) in set(rows["clip_id"])] if streams else []
            located = commit_shard(folder, items, recipes(streams)).located if items else {}
            missing = {FEATURE: {rows["clip_id"].iloc[0]: "0" * 32}} if wanted and FEATURE not in streams else None
            with monkeypatch.context() as patch:
                if not quick:
                    patch.setattr("kdcache.store.index.untouched", lambda *args: False)
                update_index(folder, rows, located, missing)
            read_manifest(folder / "manifest.csv", allow_absolute=True)  # it stays a manifest
    pd.testing.assert_frame_equal(load_index(tmp_path / "a"), load_index(tmp_path / "b"))


def test_old_rows_keep_their_bytes_where_new_ones_come(tmp_path):
    add(tmp_path, range(3))
    before = (tmp_path / "manifest.csv").read_bytes()
    add(tmp_path, range(3, 5))
    assert (tmp_path / "manifest.csv").read_bytes().startswith(before)
    assert len(load_index(tmp_path)) == 5


def test_keys_of_many_are_those_of_each():
    spans = [("é", 0.1, float("nan")), ("", 3.0, 4.0), ("f" * 32, 0.0, 1e9)]
    digests = ["a" * 32, "b" * 32, "a" * 32]
    made = keys_of(iter([*digests, "endless"]), [span_text(*span).encode() for span in spans])
    assert made.decode() == "".join(clip_key(one, *span) for one, span in zip(digests, spans, strict=True))
