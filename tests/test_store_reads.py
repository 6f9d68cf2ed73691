"""What is read is what was written, or an error that names it: checksums, their fallback, and what is read for them."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import (
    FEATURE,
    FLOW,
    RECIPES,
    RGB,
    SHAPE,
    add,
    flip,
    key,
    manifest,
    name,
    payload,
    recipes,
    record,
    resealed,
    row,
)
from test_store_faults import offset_of

import kdcache.store
from kdcache.errors import StoreError
from kdcache.store import Cache, Record, commit_shard, update_index, verify
from kdcache.store.checksum import _with_numpy, checksums
from kdcache.store.checksum_kernel import sum_rows
from kdcache.store.layout import SPLITMIX
from kdcache.store.quantised import quantise
from kdcache.store.shard import Shard
from kdcache.store.validate import check_streams

SHARD = "shard-00000.h5"


def documented():
    """The function in the format's description."""
    text = textwrap.dedent(re.search(r"    def checksum.*as int64\n", kdcache.store.__doc__, re.DOTALL)[0])
    found: dict = {}
    exec(text, found)
    return found["checksum"]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 90), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_three_ways_to_the_same_checksum(size, skipped, seed):
    """As documented, with numpy, and compiled; wherever in memory the bytes begin."""
    data = np.random.default_rng(seed).integers(0, 256, 2 * size + skipped, dtype=np.uint8)[skipped:].reshape(2, size)
    wanted = [documented()(row.tobytes()) for row in data]
    out = np.empty(2, np.uint64)
    sum_rows(data, np.arange(2), out)
    assert out.view(np.int64).tolist() == wanted
    assert [int(np.uint64(_with_numpy(row)).view(np.int64)) for row in data] == wanted
    frozen = data.copy()
    frozen.setflags(write=False)
    assert checksums(frozen).tolist() == wanted
    assert checksums(data, [1, 0, 1]).tolist() == [wanted[1], wanted[0], wanted[1]]


def test_checksums_over_more_than_a_block():
    for size in (4096 * 8, 4096 * 8 + 5, 3 * 4096 * 8 + 8):
        data = np.random.default_rng(size).integers(0, 256, (1, size), dtype=np.uint8)
        wanted = documented()(data.tobytes())
        assert checksums(data).tolist() == [wanted]
        assert int(np.uint64(_with_numpy(data[0])).view(np.int64)) == wanted


def test_mixing_is_splitmix64():
    """The second number of SplitMix64 from state 0, as published with the reference implementation, is mix(2 γ)."""
    gamma = SPLITMIX[0]
    data = (0).to_bytes(8, "little") + gamma.to_bytes(8, "little")  # words 0 + 0 γ and γ + 1 γ
    assert documented()(data) - 16 == 0x6E789E6AA1B965F4
    assert documented()(gamma.to_bytes(8, "little")) % 2**64 - 8 == 0xE220A8397B1DCDAF


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_change_within_a_word_is_always_found(data, draw):
    at = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[at] ^= draw.draw(st.integers(1, 255))
    first, second = (np.frombuffer(d, np.uint8)[None] for d in (data, bytes(changed)))
    assert checksums(first)[0] != checksums(second)[0]
    assert checksums(np.frombuffer(data + b"\0", np.uint8)[None])[0] != checksums(first)[0]


MESSAGE = (
    r"shard-00000\.h5: stream '{}' of clip '{}' \(row 3\): its bytes .*kdcache verify .* --repair.*kdcache extract"
)


@pytest.mark.parametrize("codec", [None, "zstd"])
@pytest.mark.parametrize("stream", [FEATURE, FLOW, RGB])
def test_a_damaged_clip_is_named_and_the_others_are_served(tmp_path, stream, codec):
    add(tmp_path, range(5), codec=codec)
    path = tmp_path / SHARD
    stored = Shard.open(path).streams[stream]
    if stored.start is not None:
        flip(path, offset_of(path, stream, 3))
    else:
        with h5py.File(path) as file:
            data = file[stored.path]
            chunk = data.id.get_chunk_info_by_coord((3, 1, 0, 0, 0, 0) if stream == FEATURE else (0,))
        flip(path, chunk.byte_offset + chunk.size - 2)
    cache = Cache(tmp_path)
    message = MESSAGE.format(stream, name(3)).replace("row 3", "row [0-9]").replace("003", "00[0-9]")
    for _ in range(2):  # a damaged clip is never marked as seen
        with pytest.raises(StoreError, match=message):
            cache.read(stream, [name(i) for i in range(5)])
    if stored.bounds is not None and stored.start is not None:
        with pytest.raises(StoreError, match=message):
            cache.read_frames(stream, name(3), np.array([0]))
    if not (codec and stream == FLOW):  # all of whose clips lie in one compressed piece
        cache.read(stream, [name(i) for i in (0, 1, 2, 4)])


def test_one_view_is_checked_alone_and_once(tmp_path, monkeypatch):
    add(tmp_path, range(5))
    path = tmp_path / SHARD
    stored = Shard.open(path).streams[FEATURE]
    size = int(np.prod(SHAPE[1:])) * 2
    flip(path, stored.start + (3 * SHAPE[0] + 1) * size)  # view 1 of clip 3
    cache, taken = Cache(tmp_path), []
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: taken.append(len(into[0])) or read(fd, into, at))
    np.testing.assert_array_equal(cache.read(FEATURE, [name(3)], view=0)[0], payload(FEATURE, 3)[0])
    assert taken == [size]  # no other view is read
    with pytest.raises(StoreError, match="have changed"):
        cache.read(FEATURE, [name(3)], view=1)
    with pytest.raises(StoreError, match="have changed"):
        cache.read(FEATURE, [name(3)])
    monkeypatch.setattr("kdcache.store.reader.checksums", lambda data: pytest.fail("seen already"))
    cache.read(FEATURE, [name(3)], view=0)
    pickle.loads(pickle.dumps(cache)).read(FEATURE, [name(3)], view=0)


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_quantised_views_are_checked(tmp_path, codec):
    recipe = {"stream": FEATURE, "layout": "fixed", "dtype": "uint8", "quantised": {"shared": [2, 3, 4]}}
    arrays = [quantise(payload(FEATURE, i).astype(np.float32), (2, 3, 4)) for i in range(3)]
    items = [
        Record(row(i), {}, {FEATURE: f"{i:032x}"}, {FEATURE: np.arange(2, dtype=np.int32)}, {FEATURE: a})
        for i, a in enumerate(arrays)
    ]
    update_index(tmp_path, manifest(range(3)), commit_shard(tmp_path, items, {FEATURE: recipe}, codec=codec).located)
    assert verify(tmp_path).ok
    path = tmp_path / SHARD
    stored = Shard.open(path).streams[FEATURE]
    codes = int(np.prod(SHAPE[1:]))
    if codec is None:
        flip(path, stored.start + (2 * SHAPE[0] + 1) * codes)
        cache = Cache(tmp_path)
        packed = cache.packing(FEATURE)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"'clé-002' \(row 2\)"):
                cache.read_packed(FEATURE, [name(2)], 1)
            with pytest.raises(StoreError, match=r"'clé-002' \(row 2\)"):
                cache.read(FEATURE, [name(2)])
        assert packed.parts(cache.read_packed(FEATURE, [name(2)], 0)[0])[2].shape == SHAPE[1:]
    np.testing.assert_array_equal(Cache(tmp_path).read(FEATURE, [name(1)])[0], arrays[1].decoded())


def test_shards_of_0_1_are_held_against_their_sha256(tmp_path):
    add(tmp_path, range(5))
    path = tmp_path / SHARD
    with resealed(path) as file:  # as version 0.1 wrote it
        del file["checksum"]
    assert Shard.open(path).streams[FEATURE].checks is None
    for stream in (FEATURE, FLOW, RGB):
        found = Cache(tmp_path).read(stream, [name(i) for i in range(5)])
        if stream != RGB:
            for i in range(5):
                np.testing.assert_array_equal(found[i], payload(stream, i))
        flip(path, offset_of(path, stream, 3))
        cache = Cache(tmp_path)
        cache.read(stream, [name(i) for i in (0, 1, 2, 4)])
        with pytest.raises(StoreError, match=MESSAGE.format(stream, name(3))):
            cache.read(stream, [name(3)], **({"view": 0} if stream == FEATURE else {}))


def test_no_stream_may_be_called_like_the_table():
    with pytest.raises(StoreError, match="'checksum' is a table"):
        check_streams(["checksum/flow"])


def test_no_stream_is_named_more_deeply_than_readers_walk(tmp_path):
    deepest = "/".join("abcdefgh")
    fields = {deepest: np.arange(8, dtype=np.int32)}, {deepest: payload(FEATURE, 0)}
    made = [Record(row(0), {"fingerprint": key("f"), "decoder": "pyav 14.0"}, {deepest: key(0)}, *fields)]
    done = commit_shard(tmp_path, made, {deepest: RECIPES[FEATURE] | {"stream": deepest}})
    update_index(tmp_path, manifest(range(1)), done.located)
    np.testing.assert_array_equal(Cache(tmp_path).read(deepest, [name(0)])[0], payload(FEATURE, 0))
    for long in (f"{deepest}/i", "a" * 201):
        with pytest.raises(StoreError, match="its name is too long"):
            check_streams([long])


def test_small_reads_need_no_compiler(tmp_path):
    """A process that reads little does not wait for numba."""
    add(tmp_path, range(2))
    read = f"Cache({str(tmp_path)!r}).read({FEATURE!r}, [{name(0)!r}])"
    code = f"import sys; from kdcache.store import Cache; {read}; print('numba' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "False\n"


def replaced_by(folder: Path, other: Path, how: str) -> None:
    if how == "files":
        for path in other.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    else:
        shutil.rmtree(folder)
        shutil.copytree(other, folder)


def shifted(folder: Path, by: int) -> Path:
    """A cache of two clips of equal sizes whatever ``by``."""
    records = [record(i, (FEATURE,)) for i in range(2)]
    for each in records:
        each.arrays[FEATURE] = (each.arrays[FEATURE] + by).astype(np.float16)
        each.frames[FEATURE] = each.frames[FEATURE] + by
    update_index(folder, manifest(range(2)), commit_shard(folder, records, recipes((FEATURE,))).located)
    return folder


@pytest.mark.parametrize("how", ["folder", "files"])
@pytest.mark.parametrize("ask", ["read", "frames", "origin"])
def test_another_cache_put_in_place_of_an_open_one_is_named(tmp_path, how, ask):
    """Its shards have the same names and sizes, and what was read of them has been checked."""
    folder, other = shifted(tmp_path / "a", 0), shifted(tmp_path / "b", 1)
    cache, names = Cache(folder), [name(0)]
    before = cache.read(FEATURE, names)
    replaced_by(folder, other, how)
    assert (folder / "shard-00000.h5").stat().st_size == (other / "shard-00000.h5").stat().st_size
    with pytest.raises(StoreError, match=r"shard-00000\.h5: another shard lies here than when the cache was opened"):
        cache.origin(names) if ask == "origin" else getattr(cache, ask)(FEATURE, names)
    assert not np.array_equal(Cache(folder).read(FEATURE, names), before)


def test_the_same_shard_put_there_again_is_checked_anew(tmp_path):
    folder = shifted(tmp_path / "a", 0)
    cache, path = Cache(folder), folder / "shard-00000.h5"
    before = cache.read(FEATURE, [name(0)])
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert np.array_equal(cache.read(FEATURE, [name(0)]), before)
    at = content.index(before.tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(StoreError, match=r"clip 'clé-000' \(row 0\): its bytes have changed"):
        cache.read(FEATURE, [name(0)])


def test_a_cache_opened_by_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    shifted(tmp_path / "a", 0)
    monkeypatch.chdir(tmp_path)
    cache = Cache("a")
    monkeypatch.chdir("/")
    assert cache.read(FEATURE, [name(0)]).shape == (1, *SHAPE)
