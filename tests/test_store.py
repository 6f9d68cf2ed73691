"""Writing and reading shards: every layout comes back as it went in, from any process, in any order."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_cases import (
    FEATURE,
    FLOW,
    RAW,
    RECIPES,
    RGB,
    SHAPE,
    add,
    commit_many,
    key,
    manifest,
    name,
    payload,
    recipe_digest,
    recipes,
    record,
)

from kdcache.errors import OptionError, StoreError
from kdcache.store import Cache, Record, commit_shard, inspect, update_index
from kdcache.store.commit import shard_files
from kdcache.store.fitted import fitted_clips, save_fitted
from kdcache.store.layout import row_digest

CODECS = [None, "zstd"]


@pytest.fixture(params=CODECS, ids=["contiguous", "zstd"])
def cache(request, tmp_path) -> Cache:
    """Two shards, 5 and 6 clips, three layouts."""
    add(tmp_path, range(5), codec=request.param)
    add(tmp_path, range(5, 11), codec=request.param)
    return Cache(tmp_path)


def test_fixed_rows_come_back_in_the_order_asked_for(cache):
    order = [7, 0, 10, 3, 3, 5, 4]
    read = cache.read(FEATURE, [name(i) for i in order])
    np.testing.assert_array_equal(read, np.stack([payload(FEATURE, i) for i in order]))
    assert read.dtype == np.float16
    assert cache.read(FEATURE, []).shape == (0, *SHAPE)


@pytest.mark.parametrize("view", [0, 1])
def test_one_view(cache, view):
    read = cache.read(FEATURE, [name(9), name(2)], view=view)
    np.testing.assert_array_equal(read, np.stack([payload(FEATURE, i)[view] for i in (9, 2)]))


def test_read_into_an_array(cache):
    out = np.full((2, *SHAPE), np.nan, np.float16)
    assert cache.read(FEATURE, [name(6), name(1)], out=out) is out
    np.testing.assert_array_equal(out, np.stack([payload(FEATURE, i) for i in (6, 1)]))
    for wrong in (
        np.empty((3, *SHAPE), np.float16),
        np.empty((2, *SHAPE), np.float32),
        np.empty((4, *SHAPE), np.float16)[::2],
    ):
        with pytest.raises(OptionError, match="contiguous float16"):
            cache.read(FEATURE, [name(6), name(1)], out=wrong)


def test_ragged_clips_keep_their_shapes(cache):
    order = [10, 4, 0, 7]  # 4 and 0 have no flow field at all
    for read, i in zip(cache.read(FLOW, [name(i) for i in order]), order, strict=True):
        np.testing.assert_array_equal(read, payload(FLOW, i))
        assert read.shape == payload(FLOW, i).shape
        assert read.dtype == np.uint8


def test_jpeg_is_decoded_to_rgb(cache):
    for read, i in zip(cache.read(RGB, [name(8), name(1)]), (8, 1), strict=True):
        assert read.shape == (i % 3 + 1, 24, 32, 3)
        assert read.dtype == np.uint8
        red = read[0, 12, 12]
        assert red[0] > 240
        assert red[2] < 15


def test_what_a_cache_says_of_itself(cache):
    assert cache.streams == [FLOW, FEATURE, RGB]
    assert cache.shape(FEATURE) == SHAPE
    assert cache.dtype(FLOW) == np.uint8
    assert cache.recipe(FLOW) == RECIPES[FLOW]
    assert cache.has(RGB).all()
    assert list(cache.clips.columns) == list(manifest(range(11)).columns)
    assert cache.clips.equals(manifest(range(11)))
    assert [o["decoder"] for o in cache.origin([name(1), name(6)])] == ["decord 0.6.0", "pyav 14.0"]
    for stream in cache.streams:
        for found, i in zip(cache.frames(stream, [name(9), name(2)]), (9, 2), strict=True):
            assert found.dtype == np.int32
            assert found.tolist() == record(i).frames[stream].tolist()


def test_frames_of_equal_number_are_one_table(tmp_path):
    done = add(tmp_path, range(3), (FEATURE,))
    with h5py.File(tmp_path / done.name) as file:
        assert file[f"frames/{FEATURE}"].shape == (3, 8)


def test_streams_added_later_lie_in_shards_of_their_own(tmp_path):
    add(tmp_path, range(6), (FEATURE,))
    add(tmp_path, range(2, 4), (RAW,))
    cache = Cache(tmp_path)
    assert cache.streams == [FEATURE, RAW]
    assert cache.has(RAW).tolist() == [False, False, True, True, False, False]
    np.testing.assert_array_equal(cache.read(RAW, [name(3)])[0], payload(RAW, 3))
    assert cache.origin([name(0), name(3)])[1]["decoder"] == "decord 0.6.0"
    with pytest.raises(StoreError, match=r"clip 'clé-000' \(and 1 more\) has no raw"):
        cache.read(RAW, [name(2), name(0), name(1)])


def test_wrong_requests_are_told(cache):
    with pytest.raises(OptionError, match="did you mean 'flow'"):
        cache.read("flwo", [name(0)])
    with pytest.raises(OptionError, match="views 0 to 1; 2 was asked for"):
        cache.read(FEATURE, [name(0)], view=2)
    with pytest.raises(OptionError, match="has no views"):
        cache.read(FLOW, [name(0)], view=0)
    with pytest.raises(OptionError, match="one shape a clip"):
        cache.shape(FLOW)
    with pytest.raises(OptionError, match=r"write \['clé-000'\]"):
        cache.read(FEATURE, name(0))
    with pytest.raises(StoreError, match="clip 'nobody' is not in the index"):
        cache.read(FEATURE, ["nobody"])


def test_a_missing_clip_tells_why_it_failed(tmp_path):
    done = commit_shard(tmp_path, [record(0)], recipes())
    update_index(tmp_path, manifest(range(2)), done.located)
    (tmp_path / "failures.csv").write_text(f"clip_id,source,stage,reason\n{name(1)},v0.mp4,decode,ends at frame 12\n")
    with pytest.raises(StoreError, match=r"'clé-001' failed .decode: ends at frame 12.; .*--retry-failed"):
        Cache(tmp_path).read(FEATURE, [name(1)])


def _sum(args: tuple[Cache, list[str]]) -> float:
    cache, clips = args
    return float(cache.read(FEATURE, clips).astype(np.float64).sum() + sum(f.sum() for f in cache.read(FLOW, clips)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_used_cache_travels_to_worker_processes(tmp_path, method):
    add(tmp_path, range(5))
    add(tmp_path, range(5, 11), codec="zstd")
    cache = Cache(tmp_path)
    parts = [[name(i) for i in range(k, 11, 2)] for k in (0, 1)]
    here = [_sum((cache, p)) for p in parts]  # looks into the shards before the processes start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_sum, [(cache, p) for p in parts]) == here


def test_a_cache_can_be_pickled(cache):
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.read(FEATURE, [name(7)]), cache.read(FEATURE, [name(7)]))


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_records_give_the_same_bytes(tmp_path, codec):
    names = [commit_shard(tmp_path, [record(i) for i in range(4)], recipes(), codec=codec).name for _ in range(2)]
    assert names == ["shard-00000.h5", "shard-00001.h5"]
    first, second = ((tmp_path / n).read_bytes() for n in names)
    assert first == second


def test_contiguous_by_default_and_aligned(tmp_path):
    done = add(tmp_path, range(20))
    with h5py.File(tmp_path / done.name) as file:
        start, shape = file[FEATURE].id.get_offset(), file[FEATURE].shape
    assert start % 4096 == 0
    mapped = np.memmap(tmp_path / done.name, "<f2", "r", start, shape)
    np.testing.assert_array_equal(mapped[2], payload(FEATURE, 2))


def test_zstd_keeps_one_view_a_chunk_and_makes_files_smaller(tmp_path):
    maps = np.zeros((2, 64, 8, 7, 7), np.float16)
    maps[:, ::3] = 1.5
    items = [
        Record({"clip_id": c}, {}, {FEATURE: key(c)}, {FEATURE: np.arange(8, dtype=np.int32)}, {FEATURE: maps})
        for c in "ab"
    ]
    plain, packed = (commit_shard(tmp_path, items, recipes((FEATURE,)), codec=c).name for c in CODECS)
    with h5py.File(tmp_path / packed) as file:
        assert file[FEATURE].chunks == (1, 1, 64, 8, 7, 7)
    assert (tmp_path / packed).stat().st_size < (tmp_path / plain).stat().st_size / 2


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_is_readable_with_plain_h5py(tmp_path, codec):
    """Word for word what the package's documentation promises."""
    done = add(tmp_path, range(5), codec=codec)
    with h5py.File(tmp_path / done.name) as file:
        assert file.attrs["format"] == b"kdcache/1"
        assert file.attrs["complete"] == 1
        assert json.loads(file.attrs["recipes"])[FLOW] == RECIPES[FLOW]
        assert json.loads(file.attrs["recipe_digests"])[RGB] == recipe_digest(RGB)
        assert "h5py" in json.loads(file.attrs["libraries"])
        ids = [c.decode() for c in file["clip"]]
        assert ids == [name(i) for i in range(5)]
        i = ids.index(name(3))
        np.testing.assert_array_equal(file[FEATURE][i], payload(FEATURE, 3))
        a, b = file["flow/offset"][i : i + 2]
        flow = file["flow/data"][a:b].reshape(file["flow/shape"][i])
        np.testing.assert_array_equal(flow, payload(FLOW, 3))
        first = file["rgb/offset"][i]
        a, b = file["rgb/frame_offset"][first : first + 2]
        assert file["rgb/data"][a:b].tobytes() == payload(RGB, 3)[0]
        assert file[f"key/{FLOW}"][i].decode() == record(3).keys[FLOW]
        assert file[f"digest/{FLOW}"][i].decode() == row_digest(flow)
        a, b = file["frames/flow/offset"][i : i + 2]
        assert file["frames/flow/data"][a:b].tolist() == record(3).frames[FLOW].tolist()
        assert json.loads(file["origin"][i])["decoder"] == "decord 0.6.0"
        assert json.loads(file["row"][i])["source"] == "v1.mp4"


def test_digest_covers_dtype_and_shape():
    a = np.arange(6, dtype="<i4")
    digests = {row_digest(x) for x in (a, a.reshape(2, 3), a.view("<f4"), a[::-1], [a.tobytes()], [a.tobytes(), b""])}
    assert len(digests) == 6
    assert row_digest(a[::2]) == row_digest(a[::2].copy())
    assert row_digest(np.zeros((1, 2), "<f2")) == hashlib.sha256(b"<f2|1,2|" + bytes(4)).hexdigest()[:32]
    assert row_digest([b"ab", b"c"]) == hashlib.sha256(b"jpeg|2,1|abc").hexdigest()[:32]


def test_two_processes_commit_into_one_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=commit_many, args=(str(tmp_path), 100 * k, 6)) for k in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    shards = shard_files(tmp_path)
    assert [p.name for p in shards] == [f"shard-{i:05d}.h5" for i in range(12)]
    ids = set()
    for path in shards:
        with h5py.File(path) as file:
            ids |= {c.decode() for c in file["clip"]}
    assert ids == {name(100 * k + i) for k in (1, 2) for i in range(18)}
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".h5"] == []


def test_numbers_are_taken_in_turn_where_hard_links_are_missing(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert [add(tmp_path, range(i, i + 1)).name for i in range(3)] == [f"shard-{i:05d}.h5" for i in range(3)]
    assert Cache(tmp_path).verify().ok


def test_inspect_describes_cache_and_shard(cache):
    (cache.path / "failures.csv").write_text("clip_id,source,stage,reason\nx,v.mp4,open,no such file\n")
    text = inspect(cache.path)
    for part in (
        "2 shard(s), 11 clip(s)",
        "2 × 5 × 2 × 3 × 3",
        "ragged",
        "jpeg",
        recipe_digest(FLOW),
        "6 × pyav 14.0",
        "5 × decord 0.6.0",
        "h5py",
        "x (open): no such file",
    ):
        assert part in text
    assert "1 shard(s), 6 clip(s)" in inspect(cache.path / "shard-00001.h5")
    with pytest.raises(StoreError, match="no shards here"):
        inspect(Path(__file__).parent)


def test_what_weights_were_fitted_on_is_kept_once_and_damage_is_named(tmp_path):
    first, second = "a" * 64, "b" * 64
    save_fitted(tmp_path, {first: {"backbone": "vacnn", "fitted_on": ["x", "y"]}})
    save_fitted(tmp_path, {first: {"backbone": "vacnn", "fitted_on": []}, second: {"fitted_on": ["z"]}})
    assert fitted_clips(tmp_path, first) == ["x", "y"]  # named by content, so never written twice
    assert fitted_clips(tmp_path, second) == ["z"]
    assert fitted_clips(tmp_path, "c" * 64) == fitted_clips(tmp_path, None) == []
    path = tmp_path / "fitted" / f"{first}.json"
    text = path.read_text()
    for damaged in (text.replace('"x"', '"X"'), "[", "[" * 100_000):  # an id that no clip has would leak in silence
        path.write_text(damaged)
        with pytest.raises(StoreError, match=rf"{first}.json is .*: delete it and run the same `kdcache extract`"):
            fitted_clips(tmp_path, first)
    path.write_text("{}")
    with pytest.raises(StoreError, match=rf"{first}.json: not the metadata of fitted weights"):
        fitted_clips(tmp_path, first)
    path.write_text('{"fitted_on": ["x", "y"]}')  # of version 0.1
    assert fitted_clips(tmp_path, first) == ["x", "y"]
