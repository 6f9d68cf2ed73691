"""The folder that sources are fetched into: its limit, who uses it at a time, and what killed processes leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from remote_servers import served

from kdcache import remote
from kdcache.errors import RemoteError, StoreError
from kdcache.files import temporary_name
from kdcache.remote import Address, FetchStopped, Remote
from kdcache.sources import SourceCache, fetched

NAMES = [f"{i}.bin" for i in range(6)]
SIZE = 1000


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) * SIZE)
    with served(folder) as server:
        yield server


def address(server, name: str) -> Address:
    return Address(f"{server.url}/{name}")


def names(cache: SourceCache) -> set[str]:
    """Files that are there."""
    return {path.name for path in cache.folder.glob("*/*")}


def gets(server) -> list[str]:
    return [path for verb, path in server.requests if verb == "GET"]


def test_a_source_is_fetched_once(web, tmp_path):
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    for _ in range(3):
        with cache.held(address(web, "1.bin")) as path:
            assert path.name == "1.bin"
            assert path.read_bytes() == b"\1" * SIZE
    assert gets(web) == ["/1.bin"]


def test_several_at_once_fetch_it_once(web, tmp_path):
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)

    def read(_: int) -> bytes:
        with cache.held(address(web, "2.bin")) as path:
            return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {b"\2" * SIZE}
    assert gets(web) == ["/2.bin"]


def test_those_used_longest_ago_go_and_those_in_use_stay(web, tmp_path):
    cache = SourceCache(tmp_path / "cache", 3 * SIZE)
    for age, name in enumerate(["0.bin", "1.bin", "2.bin"]):
        with cache.held(address(web, name)) as path:
            os.utime(path.parent, (100 + age, 100 + age))
    with cache.held(address(web, "0.bin")), cache.held(address(web, "3.bin")):
        assert {"0.bin", "3.bin"} <= names(cache)
        assert "1.bin" not in names(cache)
        total = sum(path.stat().st_size for path in cache.folder.glob("*/*"))
        assert total <= cache.limit
    assert len(list(cache.folder.glob("*-*.lock"))) == len(names(cache))


def test_where_all_are_in_use_a_fetch_waits(web, tmp_path, monkeypatch):
    monkeypatch.setattr(fetched, "WAIT_S", 0.01)
    cache = SourceCache(tmp_path / "cache", SIZE)
    waited = threading.Event()
    order = []

    def later() -> None:
        with cache.held(address(web, "1.bin"), stopped=lambda: waited.set()):
            order.append("had")

    with cache.held(address(web, "0.bin")) as path:
        thread = threading.Thread(target=later)
        thread.start()
        assert waited.wait(10)
        assert path.exists()
        order.append("let go")
    thread.join(10)
    assert order == ["let go", "had"]


def test_what_is_larger_than_the_whole_cache_says_so(web, tmp_path):
    with (
        pytest.raises(RemoteError, match=r"0.bin: .*raise --source-cache-gb"),
        SourceCache(tmp_path / "cache", SIZE - 1).held(address(web, "0.bin")),
    ):
        pass


def test_another_version_is_fetched_anew(web, tmp_path):
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    with cache.held(address(web, "1.bin")):
        pass
    changed = tmp_path / "web/1.bin"
    changed.write_bytes(b"x" * SIZE)
    os.utime(changed, (1, 1))
    with cache.held(address(web, "1.bin")) as path:
        assert path.read_bytes() == b"x" * SIZE
    with (
        pytest.raises(RemoteError, match="has changed since it was listed"),
        cache.held(address(web, "1.bin"), "0" * 32),
    ):
        pass


def test_without_a_version_a_source_is_fetched_each_time_unless_its_fingerprint_is_known(web, tmp_path):
    web.dated = False
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    for content in (b"x" * SIZE, b"y" * SIZE, b"z" * SIZE):
        (tmp_path / "web/1.bin").write_bytes(content)
        with cache.held(address(web, "1.bin")) as path:
            assert path.read_bytes() == content
        with cache.held(address(web, "1.bin"), fetched.fingerprint(tmp_path / "web/1.bin")) as path:
            assert path.read_bytes() == content
    assert len(gets(web)) == 3
    assert len(names(cache)) == 1
    assert int((cache.folder / ".usage").read_text()) == SIZE


def test_damage_in_the_cache_is_replaced(web, tmp_path):
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    with cache.held(address(web, "1.bin")) as path:
        expected = fetched.fingerprint(path)
        path.write_bytes(b"cut")
    with cache.held(address(web, "1.bin"), expected) as path:
        assert path.read_bytes() == b"\1" * SIZE


def test_what_killed_processes_leave_goes(web, tmp_path):
    """A fetch is killed: its lock is free, its half file goes, and its bytes count no more."""
    cache = SourceCache(tmp_path / "cache", 2 * SIZE)
    program = f"""
import os
from kdcache.remote import Address, Remote
from kdcache.sources import SourceCache
from pathlib import Path
def die(self, address, target, size, stopped=None):
    target.write_bytes(b"half")
    os._exit(9)
Remote.fetch = die
with SourceCache(Path({str(cache.folder)!r}), {cache.limit}).held(Address({f"{web.url}/0.bin"!r})): pass
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 9
    (half,) = cache.folder.glob(".*.partial")
    other_host = cache.folder / temporary_name(half.name[1:].partition(".")[0]).replace(
        os.uname().nodename, "elsewhere"
    )
    other_host.mkdir()
    for name in ("0.bin", "1.bin", "2.bin"):
        with cache.held(address(web, name)) as path:
            assert path.stat().st_size == SIZE
    assert not half.exists()
    assert other_host.exists()  # may be alive
    other_host.rmdir()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(web, tmp_path, monkeypatch):
    def full(self, address, target, size, stopped=None):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Remote, "fetch", full)
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    with pytest.raises(StoreError, match=r"cache: .*No space left.*--source-cache"), cache.held(address(web, "0.bin")):
        pass
    assert not names(cache)
    assert not list(cache.folder.glob(".*.partial"))
    assert (cache.folder / ".usage").read_text() == "0"


def test_a_stop_gives_a_transfer_up(tmp_path, web, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    cache = SourceCache(tmp_path / "cache", 10 * SIZE)
    with pytest.raises(FetchStopped), cache.held(address(web, "0.bin"), stopped=lambda: True):
        pass
    assert not list(cache.folder.glob(".*.partial"))
