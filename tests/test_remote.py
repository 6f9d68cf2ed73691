"""Sources at addresses: extraction from a bucket and from the web, keys as of local files, what fails and how."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from make_videos import pictures, write
from remote_servers import KEYS, served

import kdcache
from kdcache import remote
from kdcache.errors import OptionError, RemoteError, SourceError
from kdcache.remote import Address, Remote
from kdcache.roots import Roots
from kdcache.sources import SourceCache, fingerprint, open_source, remote_fingerprint
from kdcache.store import load_index
from kdcache.store.failures import load_failures

VIDEOS = ["a/one.mp4", "a/two.mp4"]
SOURCES = [*VIDEOS, "frames/three", "four.tar"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, a folder of pictures and a tar of them, with their manifest."""
    root = tmp_path_factory.mktemp("data")
    (root / "a").mkdir()
    for number, name in enumerate(VIDEOS):
        write(root / name, pictures(12, 48, 32, seed=number))
    folder = root / "frames/three"
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures(6, 48, 32, seed=7)):
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), picture[..., ::-1])
    with tarfile.open(root / "four.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    lines = [f"{source},{i % 2},{'' if source in VIDEOS else 25}" for i, source in enumerate(SOURCES)]
    (root / "clips.csv").write_text("\n".join(["source,label,fps", *lines]) + "\n")
    return root


def extract(data: Path, root: object, out: Path, sources: list[str] | None = None, **more: object):
    rows = kdcache.read_manifest(data / "clips.csv")
    rows = rows[rows["source"].isin(sources or SOURCES)]
    settings = {"source_cache": out.parent / "fetched", "bar": False, **more}
    return kdcache.extract(rows, root=root, out=out, streams=["rgb"], **settings)


def entries(out: Path) -> dict[str, tuple[str, str]]:
    """Clip → key and digest."""
    index = load_index(out)
    return {r["clip_id"]: (r["rgb:key"], r["rgb:digest"]) for r in index.to_dict("records")}


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "out"
    assert extract(data, data, out).extracted == 4
    return out


def test_a_bucket_gives_the_same_keys_and_bytes_as_local_files(data, local, bucket, tmp_path):
    bucket.upload(data, "set/")
    report = extract(data, f"{bucket.url}/set", tmp_path / "out")
    assert (report.extracted, report.failures) == (4, [])
    assert entries(tmp_path / "out") == entries(local)
    assert extract(data, data, tmp_path / "out").cached == 4  # found by the local copy …
    shutil.copytree(local, tmp_path / "other")
    assert extract(data, f"{bucket.url}/set/", tmp_path / "other").cached == 4  # … and the other way round
    stored = "".join(p.read_text() for p in (tmp_path / "out").glob("*.csv"))
    assert not any(secret in stored for secret in KEYS.values() if "test" in secret)


def test_an_unchanged_second_call_reads_no_content(data, bucket, tmp_path, monkeypatch):
    bucket.upload(data)
    extract(data, bucket.url, tmp_path / "out", VIDEOS)
    for name in ("read", "read_parts", "fetch"):
        monkeypatch.setattr(Remote, name, lambda *_: pytest.fail("content was read"))
    assert extract(data, bucket.url, tmp_path / "out", VIDEOS).cached == 2
    monkeypatch.undo()


def test_a_changed_file_is_extracted_again(data, bucket, tmp_path):
    bucket.upload(data)
    extract(data, bucket.url, tmp_path / "out", VIDEOS)
    bucket.put("a/one.mp4", (data / "a/two.mp4").read_bytes())
    again = extract(data, bucket.url, tmp_path / "out", VIDEOS)
    assert (again.cached, again.extracted) == (2, 0)  # its content is cached, under the other's name
    index = entries(tmp_path / "out")
    assert len(set(index.values())) == 1


def test_many_files_of_a_folder_are_listed_and_not_asked_for_one_by_one(data, bucket, tmp_path, monkeypatch):
    for number in range(9):
        bucket.put(f"v/{number}.mp4", (data / "a/one.mp4").read_bytes() + bytes(number))
    bucket.put("v/.hidden.mp4", (data / "a/one.mp4").read_bytes())
    rows = "source,label\nv/.hidden.mp4,0\n" + "".join(f"v/{number}.mp4,0\n" for number in range(10))
    (tmp_path / "clips.csv").write_text(rows)
    asked = []
    info = Remote.info
    monkeypatch.setattr(Remote, "info", lambda self, address: asked.append(str(address)) or info(self, address))
    call = {"root": bucket.url, "out": tmp_path / "out", "streams": ["rgb"], "bar": False}
    report = kdcache.extract(tmp_path / "clips.csv", source_cache=tmp_path / "fetched", dry_run=True, **call)
    assert report.clips == 11
    assert asked.count(f"{bucket.url}/v/3.mp4") == 0
    assert [f.source for f in report.failures] == ["v/9.mp4"]


def test_the_web_gives_the_same_keys_too(data, local, tmp_path):
    with served(data) as server:
        report = extract(data, server.url, tmp_path / "out")
        assert (report.extracted, report.failures) == (4, [])
        assert entries(tmp_path / "out") == entries(local)
        server.requests.clear()
        assert extract(data, server.url, tmp_path / "out", VIDEOS).cached == 2
        assert not [path for verb, path in server.requests if verb == "GET" and path.endswith(".mp4")]


@pytest.mark.parametrize("parts", [True, False])
def test_large_files_of_the_web_are_read_in_parts_or_fetched(tmp_path, parts):
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "file.bin").write_bytes(content)
    with served(tmp_path) as server:
        server.parts = parts
        address = Address(f"{server.url}/file.bin")
        files, cache = Remote(address), SourceCache(tmp_path / "fetched", 10**8)
        assert remote_fingerprint(files, address, files.info(address), cache) == fingerprint(tmp_path / "file.bin")
        sent = [path for verb, path in server.requests if verb == "GET"]
        assert (len(sent), (tmp_path / "fetched").exists()) == ((18, False) if parts else (1, True))


@pytest.mark.parametrize("fault", [403, 404, 500, "short", "slow"])
def test_a_file_at_fault_is_a_named_failure_that_is_tried_again(data, local, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setattr(remote, "READ_S", 0.3)
    with served(data) as server:
        server.faults["/a/one.mp4"] = fault
        report = extract(data, server.url, tmp_path / "out")
        (failure,) = report.failures
        assert (report.extracted, failure.source) == (3, "a/one.mp4")
        said = {
            403: "403",
            404: "nothing there",
            500: "500",
            "short": "cannot be reached after 2",
            "slow": "no answer in",
        }
        assert f"{server.url}/a/one.mp4: " in failure.reason
        assert said[fault] in failure.reason
        assert sum(r == ("GET", "/a/one.mp4") for r in server.requests) <= 4
        server.faults.clear()
        assert extract(data, server.url, tmp_path / "out").extracted == 1
        assert not load_failures(tmp_path / "out")
    assert entries(tmp_path / "out") == entries(local)
    assert not list((tmp_path / "fetched").glob(".*.partial"))


def test_a_root_at_fault_is_one_sentence(data, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with pytest.raises(RemoteError, match=r"s3://no-such-bucket-at-all/x: nothing there"):
        extract(data, "s3://no-such-bucket-at-all/x", tmp_path / "out")
    with pytest.raises(RemoteError, match=r"http://127.0.0.1:9/x: cannot be reached after 2 attempts"):
        extract(data, "http://127.0.0.1:9/x", tmp_path / "out")
    with pytest.raises(OptionError, match=r"nosuch://x: .*protocol"):
        extract(data, "nosuch://x", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_host_that_goes_away_ends_the_run_and_not_clip_by_clip(data, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with served(data) as server:
        fetch = Remote.fetch

        def then_gone(self, address, *more):
            if address.name == "two.mp4":
                server.shutdown()
                server.server_close()
            return fetch(self, address, *more)

        monkeypatch.setattr(Remote, "fetch", then_gone)
        (tmp_path / "clips.csv").write_text("source\na/one.mp4\na/two.mp4\n")
        call = {"root": server.url, "streams": ["rgb"], "source_cache": tmp_path / "fetched", "bar": False}
        prints = {s: fingerprint(data / s) for s in VIDEOS}
        monkeypatch.setattr(
            "kdcache.extraction.remote_sources.remote_fingerprint", lambda r, address, *_: prints[f"a/{address.name}"]
        )
        with pytest.raises(RemoteError, match="cannot be reached"):
            kdcache.extract(tmp_path / "clips.csv", out=tmp_path / "out", **call)
    assert len(kdcache.Cache(tmp_path / "out").clips) >= 1  # what was decoded by then is kept
    assert not load_failures(tmp_path / "out")


@pytest.mark.parametrize("size", [0, 100, 70_000, 2**20, 2**20 + 1, 3_000_000])
def test_fingerprints_are_those_of_local_files(bucket, tmp_path, size):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file.bin").write_bytes(content)
    bucket.put("file.bin", content)
    address = Address(f"{bucket.url}/file.bin")
    files = Remote(address)
    cache = SourceCache(tmp_path / "unused", 1)
    assert remote_fingerprint(files, address, files.info(address), cache) == fingerprint(tmp_path / "file.bin")
    assert not (tmp_path / "unused").exists()


def test_roots_may_be_mixed(data, local, bucket, tmp_path):
    bucket.upload(data / "a", "a/")
    here = tmp_path / "here"
    shutil.copytree(data / "frames", here / "frames")
    shutil.copy(data / "four.tar", here / "four.tar")
    shutil.copytree(data / "a", here / "a")
    (here / "a/two.mp4").unlink()
    report = extract(data, [here, bucket.url], tmp_path / "out")
    assert (report.extracted, entries(tmp_path / "out")) == (4, entries(local))
    shutil.copy(data / "a/one.mp4", here / "a/two.mp4")
    (failure,) = extract(data, [here, bucket.url], tmp_path / "other").failures
    assert "differ; give one of these roots alone" in failure.reason


@pytest.mark.parametrize(
    "root", ["s3://key:secret@bucket/x", "https://user@host/x", "https://host/x?X-Amz-Signature=secret", "https://"]
)
def test_addresses_with_credentials_are_refused_and_not_repeated(data, tmp_path, root):
    with pytest.raises(OptionError) as error:
        extract(data, root, tmp_path / "out")
    assert "secret" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_outside_the_root_is_asked_for(data, bucket, tmp_path):
    bucket.upload(data)
    (tmp_path / "clips.csv").write_text("source\nx/../a/one.mp4\n")
    call = {"root": f"{bucket.url}/frames", "out": tmp_path / "out", "streams": ["rgb"], "bar": False}
    (failure,) = kdcache.extract(tmp_path / "clips.csv", **call).failures
    assert "is no path below" in failure.reason
    for bad in ("../a/one.mp4", "/a/one.mp4", ""):
        with pytest.raises(RemoteError, match="is no path below"):
            Address("s3://bucket/frames").below(bad)


def test_what_needs_local_files_says_so():
    with pytest.raises(OptionError, match="must be a local folder"):
        Roots.of(["s3://bucket/x"]).check()
    with pytest.raises(SourceError, match="an address"):
        open_source("s3://bucket/x.mp4")


@pytest.fixture
def classes(data, tmp_path):
    """The videos in class folders, with a list of groups."""
    root = tmp_path / "classes"
    for folder, name in (("wave", "a/one.mp4"), ("clap", "a/two.mp4")):
        (root / folder).mkdir(parents=True)
        shutil.copy(data / name, root / folder)
    (root / "groups.csv").write_text("source,group\nwave/one.mp4,g1\nclap/two.mp4,g2\n")
    return root


def test_a_data_set_in_a_bucket_has_the_manifest_of_its_folder(classes, bucket, tmp_path, monkeypatch):
    bucket.upload(classes, "set/")
    fetched, fetch = [], Remote.fetch
    monkeypatch.setattr(Remote, "fetch", lambda self, a, *more: fetched.append(a.name) or fetch(self, a, *more))
    options = {"groups": "groups.csv", "held_out": "g2"}
    rows = kdcache.datasets.manifest_for("folder", f"{bucket.url}/set", **options)
    assert rows.equals(kdcache.datasets.manifest_for("folder", classes, **options))
    assert fetched == ["groups.csv"]
    with pytest.raises(OptionError, match=r"folder with these options reads sources themselves, which lie at s3://"):
        kdcache.datasets.manifest_for("folder", f"{bucket.url}/set", observe=0.4)
    with pytest.raises(RemoteError, match=r"s3://\S+/nothing: nothing there"):
        kdcache.datasets.manifest_for("folder", f"{bucket.url}/nothing")
    with pytest.raises(OptionError, match=rf"ucf101: no classInd.txt in {bucket.url}/set"):
        kdcache.datasets.manifest_for("ucf101", f"{bucket.url}/set")


def test_a_data_set_on_the_web_is_listed_by_its_index_pages(classes):
    with served(classes) as server:
        assert kdcache.datasets.manifest_for("folder", server.url).equals(
            kdcache.datasets.manifest_for("folder", classes)
        )


def test_commands_take_addresses(classes, data, bucket, tmp_path):
    from click.testing import CliRunner

    from kdcache.cli import main

    bucket.upload(classes, "set/")
    bucket.put("bad.mp4", b"no video")
    source = f"{bucket.url}/set/wave/one.mp4"
    call = ["check", source, f"{bucket.url}/bad.mp4", f"{bucket.url}/gone.mp4", "--source-cache", str(tmp_path / "c")]
    checked = CliRunner().invoke(main, call)
    assert checked.exit_code == 3, checked.output
    lines = checked.stdout.splitlines()
    assert lines[0].startswith(f"{source}: 48×32")
    assert [line.partition(".mp4: ")[0] for line in lines[1:]] == [f"{bucket.url}/bad", f"{bucket.url}/gone"]
    call = ["extract", "--dataset", "folder", "--root", f"{bucket.url}/set", "--stream", "rgb"]
    more = ["--out", str(tmp_path / "out"), "--source-cache", str(tmp_path / "c"), "-q"]
    done = CliRunner().invoke(main, [*call, *more])
    assert done.exit_code == 0, done.output
    assert set(load_index(tmp_path / "out")["source"]) == {"wave/one.mp4", "clap/two.mp4"}
    refused = CliRunner().invoke(main, [*call[:3], "--root", "s3://key:secret@bucket", *call[5:]])
    assert (refused.exit_code, "secret" in refused.output) == (1, False)


def test_a_prediction_fetches_its_source(data, bucket, tmp_path, monkeypatch):
    """The run is replaced by what notes the path that it is given and what lies there."""
    from kdcache.runs.online import loading
    from kdcache.runs.run import Run

    class Seen:
        def answers(self, source, span):
            yield source.read_bytes(), source.name, span

    monkeypatch.setattr(loading, "load", lambda *_: Seen())
    monkeypatch.setattr(Run, "__init__", lambda *_: None)
    bucket.upload(data / "a")
    (answer,) = kdcache.predict("run", f"{bucket.url}/one.mp4", start=0.1, source_cache=tmp_path / "c")
    assert answer == ((data / "a/one.mp4").read_bytes(), "one.mp4", (None, 0.1, None, None))


def test_a_missing_extra_is_one_sentence(data, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(OptionError, match=r"pip install 'kdcache\[remote\]'"):
        extract(data, "s3://bucket/x", tmp_path / "out")


def test_roots_in_the_environment_may_be_addresses():
    from kdcache.cli.common import PlacePath

    text = f"/data/a:s3://bucket/x:http://host:9000/y:rel{os.sep}b:file:///c%20d"
    found = PlacePath().split_envvar_value(text)
    assert found == ["/data/a", "s3://bucket/x", "http://host:9000/y", "rel/b", "file:///c%20d"]
    assert [str(PlacePath().convert(each, None, None)) for each in found][-1] == "/c d"
