"""``kdcache copy``: caches to a bucket and back, whole or not at all, and only what is missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from store_cases import FEATURE, add

import kdcache
from kdcache.errors import KdcacheError, RemoteError, StoreError
from kdcache.files import temporary_name
from kdcache.store import copying, reindex, verify
from kdcache.store.places import Folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    for start in (0, 2, 4):
        add(folder, range(start, start + 2))
    (folder / "fitted").mkdir()
    (folder / "fitted/a.json").write_text("{}")
    (folder / "failures.csv").write_text("clip_id,source,stage,reason,key\n")
    (folder / "sources.csv").write_text("path,size,mtime_ns,fingerprint\n")
    (folder / ".lock").touch()
    (folder / ".shard.host.1.00000000.partial").write_bytes(b"half")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    names = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}
    return {n: b for n, b in found.items() if n not in (copying.RECORD, "sources.csv")}


def test_to_a_bucket_and_back(cache, bucket, tmp_path):
    there = f"{bucket.url}/caches/one"
    report = kdcache.copy(cache, there, verify=True, bar=False)
    assert {f"caches/one/{name}" for name in [*content(cache), copying.RECORD]} == set(bucket.keys())
    assert (report.files, len(report.sent), report.verified) == (8, 8, 8)
    assert report.bytes == sum(map(len, content(cache).values()))
    kdcache.copy(there, tmp_path / "back", bar=False)
    assert content(tmp_path / "back") == content(cache)
    assert verify(tmp_path / "back", progress=False).ok
    assert kdcache.Cache(tmp_path / "back").read(FEATURE, ["clé-000"]).shape[0] == 1


def test_only_what_differs_is_sent(cache, bucket):
    kdcache.copy(cache, bucket.url, bar=False)
    assert kdcache.copy(cache, bucket.url, bar=False).sent == []
    bucket.client.delete_object(Bucket=bucket.name, Key="shard-00001.h5")
    bucket.put("shard-00002.h5", b"cut")
    with open(cache / "failures.csv", "a") as file:
        file.write("a,b,open,gone,\n")
    again = kdcache.copy(cache, bucket.url, bar=False)
    assert sorted(again.sent) == ["failures.csv", "shard-00001.h5", "shard-00002.h5"]
    assert bucket.get("shard-00002.h5") == (cache / "shard-00002.h5").read_bytes()


def test_verify_finds_what_sizes_and_times_do_not_show(cache, tmp_path):
    target = tmp_path / "copy"
    kdcache.copy(cache, target, bar=False)
    path = target / "shard-00001.h5"
    before, damaged = path.stat(), bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert kdcache.copy(cache, target, bar=False).sent == []
    assert kdcache.copy(cache, target, verify=True, bar=False).sent == ["shard-00001.h5"]
    assert content(target) == content(cache)


def test_bytes_that_changed_in_the_bucket_are_refused(cache, bucket, tmp_path):
    kdcache.copy(cache, bucket.url, bar=False)
    damaged = bytearray(bucket.get("shard-00000.h5"))
    damaged[-100] ^= 1
    bucket.put("shard-00000.h5", bytes(damaged))
    with pytest.raises(StoreError, match=r"shard-00000.h5: its bytes are not those that copied.json"):
        kdcache.copy(bucket.url, tmp_path / "back", bar=False)
    assert "shard-00000.h5" not in content(tmp_path / "back")
    assert "manifest.csv" not in content(tmp_path / "back")  # the index comes last


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"files": []}', b'{"files": 3}', b"[" * 100_000])
def test_a_record_that_is_none_is_named(cache, tmp_path, content):
    for place in (tmp_path / "target", cache):
        place.mkdir(exist_ok=True)
        (place / copying.RECORD).write_bytes(content)
        with pytest.raises(StoreError, match=r"copied\.json: damaged .*; remove it"):
            kdcache.copy(cache, tmp_path / "target", bar=False)
        (place / copying.RECORD).unlink()


def test_an_interrupted_copy_goes_on(cache, tmp_path, monkeypatch):
    target, sent = tmp_path / "copy", []
    take = Folder.take

    def failing(self, name, make, ready=None):
        if name == "shard-00001.h5":

            def half(path):
                path.write_bytes(b"half")
                raise KeyboardInterrupt

            return take(self, name, half, ready)
        sent.append(name)
        return take(self, name, make, ready)

    monkeypatch.setattr(Folder, "take", failing)
    monkeypatch.setattr(copying, "THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        kdcache.copy(cache, target, bar=False)
    monkeypatch.undo()
    assert not (target / "shard-00001.h5").exists()
    assert not list(target.glob(".*.partial"))
    assert "shard-00000.h5" in sent
    assert not {"shard-00000.h5"} & set(kdcache.copy(cache, target, bar=False).sent)
    assert content(target) == content(cache)
    (target / copying.RECORD).unlink()  # killed before it was recorded: compared, not sent
    assert not any(name.startswith("shard-") for name in kdcache.copy(cache, target, bar=False).sent)


def test_another_cache_is_not_overwritten(cache, bucket, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    add(other, range(7, 9))
    kdcache.copy(other, f"{bucket.url}/x", bar=False)
    before = {key: bucket.get(key) for key in bucket.keys()}  # noqa: SIM118
    with pytest.raises(StoreError, match=r"shard-00000.h5 there is not of"):
        kdcache.copy(cache, f"{bucket.url}/x", bar=False)
    assert {key: bucket.get(key) for key in bucket.keys()} == before  # noqa: SIM118


def test_what_is_wrong_is_one_sentence(cache, bucket, tmp_path):
    with pytest.raises(StoreError, match="no cache"):
        kdcache.copy(tmp_path, bucket.url)
    with pytest.raises(StoreError, match="onto itself"):
        kdcache.copy(cache, cache)
    with pytest.raises(RemoteError, match=r"s3://not-there-at-all/x/\S+: nothing there"):
        kdcache.copy(cache, "s3://not-there-at-all/x", bar=False)


def test_nothing_is_written_outside_the_target(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bad/manifest.csv": b"clip_id\n"})
    memory.store["/bad/../../out.txt"] = memory.store["/bad/manifest.csv"]
    try:
        with pytest.raises(StoreError, match="leads out of the cache"):
            kdcache.copy("memory://bad", tmp_path / "a/b/c", bar=False)
    finally:
        memory.store.clear()
    assert not list(tmp_path.rglob("out.txt"))


def test_the_command(cache, tmp_path):
    from click.testing import CliRunner

    from kdcache.cli import main

    done = CliRunner().invoke(main, ["copy", str(cache), (tmp_path / "copy").as_uri(), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["sent"]) == 8
    assert content(tmp_path / "copy") == content(cache)


def test_an_index_that_changes_meanwhile_is_copied_with_its_own_digest(cache, tmp_path, monkeypatch):
    """The list of digests is read beside the index, and sent with it, not as it is when all shards have been sent."""
    take = Folder.take

    def late(self, name, make, ready=None):
        if name == "shard-00000.h5":
            reindex(cache)
            (cache / "manifest.csv.sha256").write_text("0" * 64 + "  manifest.csv\n")
        return take(self, name, make, ready)

    monkeypatch.setattr(Folder, "take", late)
    kdcache.copy(cache, tmp_path / "copy", bar=False)
    assert kdcache.Cache(tmp_path / "copy").verify().ok


def test_what_a_killed_copy_had_begun_to_write_is_removed(cache, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    target = tmp_path / "copy"
    left = [folder / temporary_name("shard-00001.h5") for folder in (target, target / "fitted")]
    left = [path.with_name(path.name.replace(f".{os.getpid()}.", f".{dead.pid}.")) for path in left]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    kdcache.copy(cache, target, bar=False)
    assert not list(target.rglob(".*.partial"))
    assert content(target) == content(cache)


@pytest.mark.parametrize("name", ["manifest.csv", "shard-00000.h5", "fitted/b.json"])
def test_pipes_and_links_in_a_cache_are_named_and_not_copied(cache, tmp_path, name):
    (cache / name).unlink(missing_ok=True)
    os.mkfifo(cache / name)
    with pytest.raises(KdcacheError, match=f"{name}: no"):
        kdcache.copy(cache, tmp_path / "target", bar=False)
    (cache / name).unlink()
    (tmp_path / "secret").write_text("of nobody else")
    (cache / name).symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=f"{name}: not a regular file"):
        kdcache.copy(cache, tmp_path / "target", bar=False)
    assert not (tmp_path / "target" / name).exists()
