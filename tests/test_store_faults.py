"""Faults: killed writers, full disks, damaged and hostile files. Nothing half-written is ever taken for whole."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from store_cases import FEATURE, FLOW, RGB, add, flip, key, manifest, name, payload, recipes, record

from kdcache.errors import OptionError, StoreError
from kdcache.store import Cache, Record, clean, commit_shard, load_index, reindex, scan, update_index, verify
from kdcache.store.commit import shard_files
from kdcache.store.shard import Shard, open_shard

HERE = Path(__file__).parent


def start_writer(folder: Path, code: str) -> subprocess.Popen[str]:
    """A Python process that may use this folder's helpers."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def offset_of(path: Path, stream: str, row: int) -> int:
    """Place in the file of the middle of one row."""
    stored = Shard.open(path).streams[stream]
    assert stored.start is not None
    if stored.bounds is None:
        size = int(np.prod(stored.shape)) * stored.dtype.itemsize
        return stored.start + row * size + size // 2
    return stored.start + int(stored.bounds[row : row + 2].mean()) * stored.dtype.itemsize


# --- writing --------------------------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_no_bad_shard(tmp_path):
    rng = random.Random(0)
    for number in range(3):
        writer = start_writer(tmp_path, "import sys, store_cases; store_cases.commit_forever(sys.argv[1])")
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        until = time.monotonic() + 60
        while number == 0 and not shard_files(tmp_path) and time.monotonic() < until:  # a busy machine
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.25))
        writer.kill()
        writer.communicate()
    shards = shard_files(tmp_path)
    assert shards
    for path in shards:
        shard, tables = open_shard(path)
        assert shard.clips == len(tables["clip"]) == 12
    assert verify(tmp_path).damaged == []
    clean(tmp_path)
    assert [p for p in tmp_path.iterdir() if p.suffix == ".partial"] == []
    assert shard_files(tmp_path) == shards


def test_clean_spares_living_writers(tmp_path):
    host = os.uname().nodename
    dead = start_writer(tmp_path, "pass")
    dead.communicate()
    names = {
        f".shard.{host}.{os.getpid()}.01234567.partial": False,
        f".shard.{host}.{dead.pid}.01234567.partial": True,
        ".shard.other-host.7.01234567.partial": False,
        ".manifest.csv.01234567.partial": False,
        ".shard.old-host.7.01234567.partial": True,
        ".manifest.csv.76543210.partial": True,
    }
    for file in [*names, "notes.partial"]:
        (tmp_path / file).write_bytes(b"x")
    for old in (".shard.old-host.7.01234567.partial", ".manifest.csv.76543210.partial"):
        os.utime(tmp_path / old, (time.time() - 90_000,) * 2)
    assert set(clean(tmp_path)) == {n for n, gone in names.items() if gone}
    assert {p.name for p in tmp_path.iterdir()} == {n for n, gone in names.items() if not gone} | {"notes.partial"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells the dead from the living on Linux")
def test_a_dead_writer_that_nobody_waited_for_is_gone(tmp_path):
    """As in a container whose first process asks for no child's end."""
    writer = subprocess.Popen([sys.executable, "-S", "-c", "(a) = 1"])
    stat = Path(f"/proc/{writer.pid}/stat")
    until = time.monotonic() + 60
    while stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
        time.sleep(0.005)
    name = f".shard.{os.uname().nodename}.{writer.pid}.01234567.partial"
    (tmp_path / name).write_bytes(b"x")
    assert clean(tmp_path) == [name]
    writer.wait()


@pytest.mark.parametrize("codec", [None, "zstd"])
@pytest.mark.parametrize("room", [0, 3000, 20_000, 60_000])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, codec, room):
    """From the first byte, in the middle of tables or data, or at the very end."""
    write, left = os.pwrite, [room]

    def limited(fd: int, data: Any, offset: int) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    big = [record(i) for i in range(4)]
    for item in big:
        item.arrays[FEATURE] = np.random.default_rng(0).normal(size=(2, 20, 8, 7, 7)).astype(np.float16)
    monkeypatch.setattr("os.pwrite", limited)
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(StoreError, match=r"No space left on device.*: free some space, then run"):
        commit_shard(tmp_path, big, recipes(), codec=codec)
    assert list(tmp_path.iterdir()) == []
    assert handles == 0 or len(os.listdir("/proc/self/fd")) == handles
    monkeypatch.undo()
    assert commit_shard(tmp_path, big, recipes(), codec=codec).name == "shard-00000.h5"


def test_a_full_disk_leaves_the_old_index(tmp_path, monkeypatch):
    add(tmp_path, range(2))
    before = (tmp_path / "manifest.csv").read_bytes()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("kdcache.files.sync", lambda path: (_ for _ in ()).throw(full))
    with pytest.raises(StoreError, match=r"manifest\.csv: could not be written \(No space left on device\)"):
        update_index(tmp_path, manifest(range(3)), {})
    assert (tmp_path / "manifest.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space,"),
        (errno.EROFS, "choose a folder that can be written to,"),
        (errno.EACCES, "let this user write there, or choose another folder,"),
        (errno.EIO, "check the disk,"),
        (errno.ENOTDIR, "see that the folder is there and can be written to,"),
    ],
)
def test_a_disk_that_refuses_is_told_by_its_reason(tmp_path, monkeypatch, number, advice):
    add(tmp_path, range(2))
    refused = OSError(number, os.strerror(number))
    monkeypatch.setattr("kdcache.files.os.replace", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(StoreError) as caught:
        reindex(tmp_path)
    assert f"({os.strerror(number)})" in str(caught.value)
    assert f"{advice} then run the same command again." in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr("kdcache.store.writer.publish", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(StoreError) as caught:
        commit_shard(tmp_path, [record(9)], recipes())
    assert f"{advice} then run the same command again." in str(caught.value)


def test_a_file_size_limit_is_met_as_a_full_disk(tmp_path):
    """The operating system's own refusal, in a process of its own."""
    code = """
import resource, signal, sys
from store_cases import record, recipes
from kdcache.store import commit_shard
from kdcache.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for codec in (None, "zstd"):
    try:
        commit_shard(sys.argv[1], [record(i) for i in range(40)], recipes(), codec=codec)
    except StoreError as error:
        print(error)
"""
    process = start_writer(tmp_path, code)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.count("File too large") == 2
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_come_back_different_are_not_published(tmp_path, monkeypatch):
    write = os.pwrite

    def faulty(fd: int, data: Any, offset: int) -> int:
        data = bytes(data)
        return write(fd, data.replace(payload(FEATURE, 1).tobytes(), payload(FEATURE, 2).tobytes()), offset)

    monkeypatch.setattr("os.pwrite", faulty)
    with pytest.raises(StoreError, match=r"came back from the disk different .*\(row 1\)"):
        commit_shard(tmp_path, [record(i) for i in range(3)], recipes())
    assert list(tmp_path.iterdir()) == []


def _wrong(**changes: Any) -> Record:
    item = record(1, (FEATURE, FLOW))
    for field, (stream, value) in changes.items():
        getattr(item, field)[stream] = value
    return item


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (_wrong(arrays=(FEATURE, payload(FEATURE, 1).astype(np.float32))), "'clé-001'.*dtype is float32.*float16"),
        (_wrong(arrays=(FEATURE, payload(FEATURE, 1)[:1])), "is fixed, but its clips have shapes"),
        (_wrong(arrays=(FLOW, np.zeros((2, 3), np.uint8))), "number of dimensions"),
        (_wrong(arrays=(FLOW, [b"x"])), "a list was handed in"),
        (_wrong(arrays=("idt", np.zeros(3, np.uint8))), "streams without a recipe: idt"),
        (_wrong(keys=(FLOW, "F" * 32)), "not 32 hexadecimal digits"),
        (_wrong(frames=(FLOW, np.arange(3))), "not an int32 vector"),
        (record(1, (FEATURE,)), "'flow': no array was handed in"),
        (record(0, (FEATURE, FLOW)), "must be unique"),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, item, message):
    with pytest.raises(StoreError, match=message):
        commit_shard(tmp_path, [record(0, (FEATURE, FLOW)), item], recipes((FEATURE, FLOW)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", ["key", "row/x", "frames/flow", "../x", "a//b", "", "/a", "a b"])
def test_stream_names_that_clash_with_the_format_are_refused(tmp_path, stream):
    item = Record(
        {"clip_id": "a"}, {}, {stream: key(1)}, {stream: np.zeros(1, np.int32)}, {stream: np.zeros((1, 2), "f2")}
    )
    with pytest.raises(StoreError, match="Stream"):
        commit_shard(tmp_path, [item], {stream: {"stream": stream, "layout": "fixed", "dtype": "float16"}})


def test_unknown_codec_and_empty_shard_are_refused(tmp_path):
    with pytest.raises(OptionError, match="'zst': did you mean 'zstd'"):
        commit_shard(tmp_path, [record(0)], recipes(), codec="zst")
    with pytest.raises(StoreError, match="at least one clip"):
        commit_shard(tmp_path, [], recipes())


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Shards 0 (clips 0 to 4), 1 (5 to 9) and 2 (10, 11); the flow of clip 7 has one byte changed."""
    for clips in (range(5), range(5, 10), range(10, 12)):
        add(tmp_path, clips)
    flip(tmp_path / "shard-00001.h5", offset_of(tmp_path / "shard-00001.h5", FLOW, 2))
    return tmp_path


@pytest.mark.parametrize("stream", [FEATURE, FLOW, RGB])
def test_one_changed_byte_is_found_and_named(tmp_path, stream):
    add(tmp_path, range(5))
    path = tmp_path / "shard-00000.h5"
    assert verify(tmp_path).ok
    flip(path, offset_of(path, stream, 3))
    report = verify(tmp_path)
    assert [(d.shard, d.stream, d.row, d.clip_id) for d in report.damaged] == [(path.name, stream, 3, name(3))]
    assert not report.ok
    assert f"{stream} of clip '{name(3)}'" in str(report)
    assert "--repair" in str(report)


def test_a_changed_byte_in_compressed_data_is_found(tmp_path):
    done = add(tmp_path, range(5), codec="zstd")
    with h5py.File(tmp_path / done.name) as file:
        chunk = file[FEATURE].id.get_chunk_info_by_coord((3, 1, 0, 0, 0, 0))
    flip(tmp_path / done.name, chunk.byte_offset + chunk.size // 2)
    report = verify(tmp_path)
    assert [(d.stream, d.row) for d in report.damaged] == [(FEATURE, 3)]


def test_repair_drops_just_the_damaged_array(damaged):
    report = verify(damaged, repair=True)
    assert report.repaired
    assert not Cache(damaged).has(FLOW)[7]
    assert Cache(damaged).has(FLOW).sum() == 11
    assert Cache(damaged).has(FEATURE).all()
    key7 = record(7).keys[FLOW]
    assert key7 not in scan(damaged)[FLOW]  # the shard still holds it: it must not be adopted again
    before = load_index(damaged)
    reindex(damaged)
    assert load_index(damaged).equals(before)
    again = verify(damaged)
    assert again.ok
    assert [d.clip_id for d in again.set_aside] == [name(7)]
    add(damaged, range(7, 8), (FLOW,))  # what the next extract does
    np.testing.assert_array_equal(Cache(damaged).read(FLOW, [name(7)])[0], payload(FLOW, 7))
    assert scan(damaged)[FLOW][key7][0] == "shard-00003.h5"


def test_a_restored_shard_is_taken_back(damaged):
    verify(damaged, repair=True)
    flip(damaged / "shard-00001.h5", offset_of(damaged / "shard-00001.h5", FLOW, 2))
    verify(damaged, repair=True)
    assert not (damaged / "damaged.csv").exists()
    reindex(damaged)
    assert Cache(damaged).has(FLOW).all()


@pytest.mark.parametrize("size", [0, 100, 3000, -1])
def test_a_truncated_shard_is_named_and_repaired_away(damaged, size):
    cache = Cache(damaged)
    cache.read(FEATURE, [name(0), name(6)])  # its structure is known before it is cut
    path = damaged / "shard-00001.h5"
    os.truncate(path, path.stat().st_size - 1 if size < 0 else size)
    for reader in (cache, Cache(damaged)):
        with pytest.raises(StoreError, match=r"shard-00001\.h5.*run `kdcache verify .* --repair`"):
            reader.read(FEATURE, [name(0), name(6)])
    with pytest.raises(StoreError, match=r"shard-00001\.h5"):
        scan(damaged)
    assert str(verify(damaged)).count("--repair") == 1
    report = verify(damaged, repair=True)
    assert list(report.unreadable) == [path.name]
    assert "--repair" not in str(report)
    assert "; set aside as shard-00001.h5.damaged\n" in str(report)
    assert not path.exists()
    assert (damaged / "shard-00001.h5.damaged").exists()
    assert Cache(damaged).has(FEATURE).tolist() == [True] * 5 + [False] * 5 + [True] * 2
    assert verify(damaged).ok
    assert add(damaged, range(5, 10)).name == "shard-00003.h5"  # a number is never used again
    assert Cache(damaged).has(FEATURE).all()


def test_a_missing_shard_and_a_wrong_place_are_named(tmp_path):
    add(tmp_path, range(3), (FLOW,))
    add(tmp_path, range(3, 5), (FLOW,))
    (tmp_path / "shard-00001.h5").unlink()
    index = tmp_path / "manifest.csv"
    index.write_text(index.read_text().replace("shard-00000.h5,1,", "shard-00000.h5,2,"))
    (tmp_path / "manifest.csv.sha256").unlink()  # as in a cache of version 0.1
    report = verify(tmp_path, repair=True)
    assert {d.clip_id: d.reason for d in report.lost} == {
        name(1): "shard-00000.h5 holds something else there",
        name(3): "shard-00001.h5 is not there",
        name(4): "shard-00001.h5 is not there",
    }
    assert load_index(tmp_path)[f"{FLOW}:row"].fillna(-1).tolist() == [0, -1, 2, -1, -1]


def test_a_broken_index_is_rebuilt(tmp_path):
    add(tmp_path, range(3))
    before = load_index(tmp_path)
    (tmp_path / "manifest.csv").write_text("this is no index\n")
    assert "clip_id" in verify(tmp_path).index
    verify(tmp_path, repair=True)
    assert load_index(tmp_path).equals(before)
    assert (tmp_path / "manifest.csv.damaged").read_text() == "this is no index\n"


def test_any_changed_byte_is_found_or_harmless(tmp_path):
    """Bytes all over the file, structure included: what can still be read is right, or verify says otherwise."""
    done = add(tmp_path, range(3))
    path = tmp_path / done.name
    whole = path.read_bytes()
    rng = random.Random(1)
    silent = 0
    for offset in [*range(0, 64, 7), *(rng.randrange(len(whole)) for _ in range(60))]:
        flip(path, offset)
        if verify(tmp_path).ok:
            silent += 1
            cache = Cache(tmp_path)
            np.testing.assert_array_equal(cache.read(FEATURE, [name(2)])[0], payload(FEATURE, 2))
            np.testing.assert_array_equal(cache.read(FLOW, [name(2)])[0], payload(FLOW, 2))
            assert cache.origin([name(2)]) == [record(2).origin]
        path.write_bytes(whole)
    assert silent < 50  # padding between blocks, the only bytes that nothing reads


# --- hostile files --------------------------------------------------------------------------------------------------


def _external_link(file: Any) -> None:
    file["rgb/more"] = h5py.ExternalLink("/etc/hostname.h5", "/x")


def _soft_link(file: Any) -> None:
    del file["clip"]
    file["clip"] = h5py.SoftLink("/origin")


def _objects(file: Any) -> None:
    file.create_dataset("notes", data=["text of any length"], dtype=h5py.string_dtype())


def _references(file: Any) -> None:
    file.create_dataset("refs", data=[file["clip"].ref], dtype=h5py.ref_dtype)


def _compound(file: Any) -> None:
    file.create_dataset("pairs", data=np.zeros(2, [("a", "i4"), ("b", "f4")]))


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "i4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,), dtype="i4")
    file.create_virtual_dataset("virtual", layout)


def _external_bytes(file: Any) -> None:
    file.create_dataset("outside", shape=(4,), dtype="u1", external=[("/etc/hostname", 0, 4)])


def _filtered(file: Any) -> None:
    file.create_dataset("packed", data=np.zeros(100, "i4"), compression="gzip")


def _unwritten(file: Any) -> None:
    file.create_dataset("vast", shape=(10**12,), dtype="f4")


def _unwritten_chunks(file: Any) -> None:
    import hdf5plugin

    file.create_dataset("vast", shape=(10**12,), dtype="f4", chunks=(10**6,), **hdf5plugin.Zstd())


def _version(file: Any) -> None:
    file.attrs["format"] = np.bytes_("kdcache/3")


def _no_format(file: Any) -> None:
    del file.attrs["format"]


def _unfinished(file: Any) -> None:
    file.attrs["complete"] = 0


def _attribute_type(file: Any) -> None:
    file.attrs["recipes"] = np.zeros(3)


def _attribute_length(file: Any) -> None:
    file.attrs["libraries"] = "{}"


def _other_recipe(file: Any) -> None:
    file.attrs["recipes"] = np.bytes_(file.attrs["recipes"].replace(b"20.0", b"15.0"))


def _other_table(file: Any) -> None:
    file["clip"][0] = b"someone else"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external_link, "'rgb/more' is a link"),
        (_soft_link, "'clip' is a link"),
        (_objects, "'notes' has dtype object"),
        (_references, "'refs' has dtype object"),
        (_compound, "'pairs' has dtype"),
        (_virtual, "'virtual' is assembled from other files"),
        (_external_bytes, "'outside' keeps its bytes in another file"),
        (_filtered, "'packed' needs HDF5 filter"),
        (_unwritten, "'vast' lacks some of its bytes"),
        (_unwritten_chunks, "'vast' lacks some of its bytes"),
        (_version, "its format is 'kdcache/3' and this kdcache reads 'kdcache/1' and 'kdcache/2'"),
        (_no_format, "not a kdcache shard"),
        (_unfinished, "it was not finished"),
        (_attribute_type, "attribute 'recipes' is missing or not fixed-length text"),
        (_attribute_length, "attribute 'libraries' is missing or not fixed-length text"),
        (_other_recipe, "its recipes do not have the digests"),
        (_other_table, "its tables have changed"),
    ],
    ids=lambda p: p.__name__.lstrip("_") if callable(p) else "",
)
def test_unsafe_and_foreign_files_are_refused(tmp_path, change, message):
    path = tmp_path / add(tmp_path, range(3)).name
    with h5py.File(path, "r+") as file:
        change(file)
    for reading in (lambda: Cache(tmp_path).read(FLOW, [name(0)]), lambda: scan(tmp_path), lambda: open_shard(path)):
        with pytest.raises(StoreError, match=message):
            reading()
    assert not verify(tmp_path).ok


def test_repair_leaves_foreign_files_to_their_owner(tmp_path):
    path = tmp_path / add(tmp_path, range(3)).name
    with h5py.File(path, "r+") as file:
        _version(file)
    before = str(verify(tmp_path)).splitlines()
    assert before[-2].endswith("; use the version that wrote it.")
    assert before[-1].startswith("do what is said of the 1 file(s) not used; a repair leaves them to you")
    report = verify(tmp_path, repair=True)
    assert list(report.foreign) == [path.name]
    assert "repaired but for what is not used: do what is said of the 1 file(s)" in str(report)
    assert path.exists()
    (tmp_path / "manifest.csv").write_text("")
    both = str(verify(tmp_path, repair=True)).splitlines()[-1]
    assert both.startswith("manifest.csv is not rebuilt beside files that are not used: do what is said")
    path.unlink()
    verify(tmp_path, repair=True)  # as it was said: with no shard left, the next extract begins anew
    assert add(tmp_path, range(3)).name == "shard-00000.h5"
    assert verify(tmp_path).ok


def test_a_cache_never_leaves_handles_open(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not list open files")
    add(tmp_path, range(3))
    add(tmp_path, range(3, 6), codec="zstd")
    update_index(tmp_path, manifest(range(6)), {})
    before = len(os.listdir("/proc/self/fd"))
    cache = Cache(tmp_path)
    for stream in cache.streams:
        cache.read(stream, [name(i) for i in range(6)])
    cache.verify()
    assert len(os.listdir("/proc/self/fd")) == before
