"""Shards made by strangers, whose own digests are right: one sentence from every reader, nothing allocated before it is
known to fit, and the rest of the cache stays of use."""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import h5py
import hdf5plugin
import numpy as np
import pytest
from store_cases import FEATURE, FLOW, RGB, SHAPE, add, name, payload, resealed

from kdcache.errors import KdcacheError, StoreError
from kdcache.picture_size import picture_size
from kdcache.recipe import canonical
from kdcache.store import Cache, describe, load_index, reindex, scan, verify
from kdcache.store.hdf5_guard import _declared
from kdcache.store.jpeg import decode_jpeg
from kdcache.store.shard import open_shard

GOOD, BAD = "shard-00000.h5", "shard-00001.h5"


@pytest.fixture
def cache(tmp_path) -> Path:
    """Clips 0 to 2 in a shard that stays as it is, 3 to 5 in one to be changed."""
    add(tmp_path, range(3))
    add(tmp_path, range(3, 6))
    return tmp_path


def replaced(file: Any, table: str, values: Any, **options: Any) -> None:
    """A table with other content."""
    del file[table]
    file.create_dataset(table, data=values, **options)


def texts(*values: bytes) -> Any:
    return np.array(values, h5py.string_dtype("utf-8", max(map(len, values))))


ROWS = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "deep": b"[" * 5000,
    "deep inside": b'{"clip_id":"a","source":"v","x":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "no id": b'{"source":"v"}',
    "a list as id": b'{"clip_id":["a"],"source":"v"}',
    "a text as time": b'{"clip_id":"a","source":"v","start_s":"soon"}',
    "endless": b'{"clip_id":"a","source":"v","start_s":1e999}',
    "not UTF-8": b"\xff\xfe",
    "a long number": b'{"clip_id":"a","source":"v","x":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rows_that_are_no_rows(cache, row):
    with resealed(cache / BAD) as file:
        replaced(file, "row", texts(row, row, row))
    with pytest.raises(StoreError, match=rf"{BAD}: its table 'row' .*run `kdcache verify"):
        reindex(cache)
    the_rest_is_of_use(cache)


@pytest.mark.parametrize("origin", [b"{", b"[1]", b"[" * 5000, b"\xff"], ids=["no JSON", "a list", "deep", "not UTF-8"])
def test_origins_that_are_no_origins(cache, origin):
    with resealed(cache / BAD) as file:
        replaced(file, "origin", texts(origin, origin, origin))
    for read in (describe, lambda f: Cache(f).origin([name(4)])):
        with pytest.raises(StoreError, match=rf"{BAD}: its table 'origin' "):
            read(cache)
    the_rest_is_of_use(cache)


@pytest.mark.parametrize("table", ["clip", f"digest/{FLOW}", f"key/{RGB}"])
def test_texts_that_are_not_utf_8(cache, table):
    with resealed(cache / BAD) as file:
        replaced(file, table, texts(b"\xff\xfe", b"\x80", b"a"))
    the_rest_is_of_use(cache)


def refused(read: Callable[[Path], Any], cache: Path) -> str | None:
    """The sentence in which a reader refuses a cache, if it does."""
    try:
        read(cache)
    except KdcacheError as error:
        return str(error)
    return None


def the_rest_is_of_use(cache: Path) -> None:
    """Every reader answers in a sentence; verify names the shard, repair takes it out of use, the other is read."""
    for read in (describe, scan, reindex, lambda f: Cache(f).read(FLOW, [name(4)]), lambda f: open_shard(f / BAD)):
        error = refused(read, cache)
        assert error is None or BAD in error
    report = verify(cache)
    assert not report.ok
    assert list(report.unreadable) + list(report.foreign) == [BAD] or {d.shard for d in report.damaged} == {BAD}
    assert report.arrays >= 9
    verify(cache, repair=True)
    np.testing.assert_array_equal(Cache(cache).read(FEATURE, [name(1)])[0], payload(FEATURE, 1))
    assert load_index(cache)["clip_id"].tolist()[:3] == [name(i) for i in range(3)]


def _recipes(file: Any, change: Callable[[dict[str, Any]], Any]) -> None:
    recipes = json.loads(bytes(file.attrs["recipes"]))
    change(recipes)
    file.attrs["recipes"] = np.bytes_(canonical(recipes))


def _shape(*shape: Any, dtype: str = "<i8") -> Callable[[Any], None]:
    return lambda file: replaced(file, f"{FLOW}/shape", np.array([shape] * 3, dtype))


def _many_names(file: Any) -> None:
    """Groups that reach one another by 12 names each: 12¹⁰ paths in 16 kB."""
    groups = [file.create_group(f"g{i}") for i in range(11)]
    for a, b in pairwise(groups):
        for i in range(12):
            a[f"n{i}"] = b


def _zeros(size: int, name: str = "pad", **options: Any) -> Callable[[Any], None]:
    """Zeros that take little room in the file and ``size`` bytes in memory."""

    def change(file: Any) -> None:
        if name in file:
            del file[name]
        data = file.create_dataset(name, (size,), "u1", chunks=(2**26,), **hdf5plugin.Zstd())
        for start in range(0, size, 2**26):
            data[start : start + 2**26] = 0

    return change


def _vast(file: Any) -> None:
    """A table that was never written: a hole in the file."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((3, 2**30))
    del file["frames/flow/data"], file["frames/flow/offset"], file["frames/flow"]
    h5py.h5d.create(file["frames"].id, b"flow", h5py.h5t.STD_I32LE, space, properties)


def _clip_of_a_hole(file: Any) -> None:
    """A stream whose one clip is a hole of 30 GiB."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    size = 10 * 2**30
    del file["flow/data"]
    h5py.h5d.create(file["flow"].id, b"data", h5py.h5t.STD_U8LE, h5py.h5s.create_simple((3 * size,)), properties)
    replaced(file, "flow/offset", np.arange(4) * size)
    replaced(file, "flow/shape", np.array([[size, 1, 1, 1]] * 3))


def _wide_piece(file: Any) -> None:
    """A fixed stream in one compressed piece of all clips, instead of one a clip-view."""
    values = file[FEATURE][()]
    replaced(file, FEATURE, values, chunks=values.shape, **hdf5plugin.Zstd())


STRUCTURES: dict[str, Callable[[Any], None]] = {
    "a product that overflows": _shape(2**32, 2**32, 1, 1),
    "negative": _shape(-2, -2, 1, 1),
    "negative once": _shape(-1, -4, 1, 1),
    "fractions": _shape(1.0, 1.0, 1.0, 1.0, dtype="<f8"),
    "no axes": lambda file: replaced(file, f"{FLOW}/shape", np.zeros((3, 0), "<i8")),
    "an offset of fractions": lambda file: replaced(file, f"{FLOW}/offset", np.zeros(4, "<f8")),
    "an offset that goes back": lambda file: replaced(file, f"{FLOW}/offset", np.array([0, 2**62, 5, 9])),
    "frames beyond the end": lambda file: replaced(file, f"{RGB}/offset", np.array([0, 10**6, 10**6, 10**6])),
    "frames before the start": lambda file: replaced(file, f"{RGB}/offset", np.array([0, -1, -1, 3])),
    "checksums of others": lambda file: replaced(file, f"checksum/{FEATURE}", np.zeros((3, 7), "<i8")),
    "checksums of nothing": lambda file: replaced(file, f"checksum/{FEATURE}", np.zeros((3, 2), "<i8")),
    "another table": lambda file: file.create_dataset("notes", data=np.zeros(3, "u1")),
    "a compressed table": lambda file: replaced(file, "clip", file["clip"][()], chunks=(3,), **hdf5plugin.Zstd()),
    "a bomb": _zeros(2**27),
    "a bomb of a known name": _zeros(2**27, "origin"),
    "a hole as table": _vast,
    "a hole as clip": _clip_of_a_hole,
    "a wide piece": _wide_piece,
    "many names": _many_names,
    "a circle": lambda file: file["frames"].__setitem__("again", file["/"]),
    "a table of two names": lambda file: file.__setitem__("frames/more", file["clip"]),
    "a recipe that is a list": lambda file: _recipes(file, lambda r: r.update({FLOW: []})),
    "a recipe without layout": lambda file: _recipes(file, lambda r: r[FLOW].pop("layout")),
    "an odd dtype": lambda file: _recipes(file, lambda r: r[FLOW].update(dtype="S1000000000")),
    "a dtype that is a list": lambda file: _recipes(file, lambda r: r[FLOW].update(dtype=["u1"])),
    "a stream called as a table": lambda file: _recipes(file, lambda r: r.update(clip=r[FEATURE])),
    "quantised without scales": lambda file: _recipes(file, lambda r: r[FEATURE].update(quantised={}, dtype="uint8")),
    "a long attribute": lambda file: file.attrs.__setitem__("libraries", np.bytes_(b"{}" + b" " * 17 * 2**20)),
}


@pytest.fixture
def little_memory():
    """8 GiB of addresses more than now: allocating 9 GiB fails here instead of filling the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 8 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("change", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_structures_that_no_shard_has(cache, change, little_memory):
    with resealed(cache / BAD) as file:
        change(file)
    the_rest_is_of_use(cache)


def test_a_piece_that_claims_another_size_is_not_decompressed(tmp_path):
    """The filter would allocate the 4 GiB in the header of the zstd frame."""
    add(tmp_path, range(3), codec="zstd")
    with h5py.File(tmp_path / GOOD) as file:
        data = file[FEATURE].id
        piece = data.get_chunk_info_by_coord((1, 0, 0, 0, 0, 0))
        raw = data.read_direct_chunk((1, 0, 0, 0, 0, 0))[1]
    assert _declared(raw) == int(np.prod(SHAPE[1:])) * 2
    with open(tmp_path / GOOD, "r+b") as shard:
        shard.seek(piece.byte_offset)
        shard.write(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (4 * 2**30).to_bytes(8, "little"))
    with pytest.raises(
        StoreError, match=rf"{GOOD}: stream '{FEATURE}' of clip '{name(1)}' \(row 1\).*cannot be decomp"
    ):
        Cache(tmp_path).read(FEATURE, [name(1)])
    assert [(d.row, d.reason) for d in verify(tmp_path).damaged] == [(1, "its bytes cannot be read")]


@pytest.mark.parametrize("size", [1, 255, 256, 65791, 65792, 10**6])
def test_sizes_in_headers_of_zstd(tmp_path, size):
    """As the library writes them, for each width of the field."""
    with h5py.File(tmp_path / "one.h5", "w") as file:
        data = file.create_dataset("x", data=np.zeros(size, "u1"), chunks=(size,), **hdf5plugin.Zstd())
        assert _declared(data.id.read_direct_chunk((0,))[1]) == size
    for broken in (b"", b"\x28\xb5\x2f\xfd", b"\x29\xb5\x2f\xfd" + b"\xe0" * 14):
        assert _declared(broken) is None


# --- files that are no files ----------------------------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to(path.with_name(GOOD))


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("gone.h5"))


@pytest.mark.parametrize("make", [_pipe, _link, _dangling, Path.mkdir], ids=["pipe", "link", "dead link", "folder"])
def test_only_regular_files_are_shards(cache, make):
    (cache / BAD).unlink()
    make(cache / BAD)
    answers: list[Any] = []
    worker = threading.Thread(target=lambda: answers.append(the_rest_is_of_use(cache)), daemon=True)
    worker.start()
    worker.join(60)
    assert answers == [None]
    assert list(verify(cache).foreign) == [BAD]


# --- pictures -------------------------------------------------------------------------------------------------------


def picture(height: int, width: int, value: int = 0) -> bytes:
    return cv2.imencode(".jpg", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def claiming(data: bytes, height: int, width: int) -> bytes:
    """A JPEG file whose header says another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def test_sizes_in_headers_of_pictures():
    assert picture_size(picture(24, 32)) == (24, 32)
    progressive = cv2.imencode(".jpg", np.zeros((9, 17, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1]
    assert picture_size(progressive.tobytes()) == (9, 17)
    for broken in (
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 40,
        b"\xff\xd8\xff\xc0\0",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 20,
    ):
        assert picture_size(broken) is None


@pytest.mark.parametrize(("height", "width"), [(65500, 65500), (30000, 30000), (8193, 8193), (4000, 4000)])
def test_pictures_that_claim_more_than_they_hold_are_not_decoded(tmp_path, height, width):
    with pytest.raises(StoreError, match=f"claims {width} × {height} pixels"):
        decode_jpeg([claiming(picture(24, 32), height, width)], tmp_path / GOOD)


def test_pictures_of_two_sizes_and_no_pictures(tmp_path):
    with pytest.raises(StoreError, match="differ in size"):
        decode_jpeg([picture(24, 32), picture(32, 24)], tmp_path / GOOD)
    png = cv2.imencode(".png", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    for data in (png, b"", b"x" * 90, picture(24, 32)[:30], claiming(picture(24, 32), 0, 32)):
        with pytest.raises(StoreError, match="cannot be decoded"):
            decode_jpeg([data], tmp_path / GOOD)


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_OPTIMIZE, 1], [cv2.IMWRITE_JPEG_QUALITY, 5]])
def test_the_emptiest_legitimate_picture_is_decoded(tmp_path, options):
    data = cv2.imencode(".jpg", np.zeros((1080, 1920, 3), np.uint8), options)[1].tobytes()
    assert decode_jpeg([data], tmp_path / GOOD).shape == (1, 1080, 1920, 3)
