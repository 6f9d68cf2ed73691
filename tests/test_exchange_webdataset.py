"""WebDataset shards, read by the library's documented convention; the library itself is not installed in tests."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdcache import exchange
from kdcache.errors import OptionError
from kdcache.exchange.export_webdataset import field_name, sample_key
from kdcache.manifest import validate
from kdcache.store import Cache, Record, commit_shard, update_index

IDS = ["bend/daria_bend", "v1.2", "../out", "__meta__", "a b", "ü"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Six clips with maps; five of them with vectors of different lengths too."""
    rng = np.random.default_rng(0)
    maps = {"stream": "net/Map.1", "layout": "fixed", "dtype": "float16", "shape": [2, 3], "version": 1}
    ragged = {"stream": "vec", "layout": "ragged", "dtype": "float32", "axes": "TD", "version": 1, "imported": {}}
    table = [
        {"clip_id": c, "source": "v.mp4", "start_s": None, "stop_s": 2.0, "label": i % 2, "split": s}
        for i, (c, s) in enumerate(zip(IDS, ["train", "test", "train", "", "train", "test"], strict=True))
    ]
    located: dict[str, Any] = {}
    for recipe, count in ((maps, 6), (ragged, 5)):
        stream = str(recipe["stream"])
        records = []
        for i, row in enumerate(table[:count]):
            shape = (2, 3) if recipe is maps else (i + 1, 4)
            array = rng.normal(size=shape).astype(recipe["dtype"])
            key = f"{i:032x}"
            records.append(Record(row, {}, {stream: key}, {stream: np.arange(i + 2, dtype=np.int32)}, {stream: array}))
        located |= commit_shard(tmp_path / "out", records, {stream: recipe}).located
    update_index(tmp_path / "out", validate(pd.DataFrame(table)), located)
    return tmp_path / "out"


def samples(tar: Path) -> Iterator[dict[str, Any]]:
    """Files of a tar, in order, grouped by what comes before the first dot of the base name; fields in lower case."""
    current: dict[str, Any] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            assert member.isreg()
            assert not re.match(r"__[^/]*__($|/)", member.name)  # what the library passes over
            found = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name)
            assert found, member.name
            if found[1] != current.get("__key__"):
                if current:
                    yield current
                current = {"__key__": found[1]}
            assert found[2].lower() not in current
            file = archive.extractfile(member)
            assert file is not None
            current[found[2].lower()] = file.read()
    yield current


def test_samples_are_clips(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "wds"
    report = exchange.export_webdataset(cache, out, streams=["net/Map.1", "vec"])
    assert (
        str(report)
        == f"{out}: 5 clips; 1 shards written, 0 were there. 1 clips of the cache have no net/Map.1 and vec."
    )
    found = list(samples(out / "clips-000000.tar"))
    assert [sample["__key__"] for sample in found] == ["bend/daria_bend", "v1%2E2", "%2E%2E/out", "%5F_meta__", "a b"]
    store = Cache(cache)
    for clip, sample in zip(IDS, found, strict=False):
        assert sample.keys() == {"__key__", "net.map.1.npy", "vec.npy", "json"}
        assert np.load(io.BytesIO(sample["net.map.1.npy"])).tobytes() == store.read("net/Map.1", [clip]).tobytes()
        assert np.load(io.BytesIO(sample["vec.npy"])).tobytes() == store.read("vec", [clip])[0].tobytes()
        facts = json.loads(sample["json"])
        assert facts["clip"]["clip_id"] == clip
        assert facts["clip"]["label"] in (0, 1)
        assert facts["clip"]["start_s"] is None
        assert facts["frames"] == {s: store.frames(s, [clip])[0].tolist() for s in ("net/Map.1", "vec")}
    with tarfile.open(out / "clips-000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}
    assert sorted(p.name for p in out.iterdir()) == ["clips-000000.tar", "export.json", "manifest.csv"]


def test_the_same_call_writes_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"streams": ["net/Map.1"], "shard_size": 0.005, "shuffle": 3}
    first = exchange.export_webdataset(cache, tmp_path / "a", **call)
    names = [f"clips-{i:06d}.tar" for i in range(first.written)]
    assert first.written > 1
    assert sorted(p.name for p in (tmp_path / "a").glob("*.tar")) == names
    assert all((tmp_path / "a" / name).stat().st_size < 20_000 for name in names)  # tarfile pads to 10,240 bytes
    exchange.export_webdataset(cache, tmp_path / "b", **call)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    keys = [sample["__key__"] for name in names for sample in samples(tmp_path / "a" / name)]
    assert sorted(keys) == sorted(map(sample_key, IDS))
    assert keys != list(map(sample_key, IDS))
    (tmp_path / "a" / names[0]).write_bytes(b"cut short")
    (tmp_path / "a" / "clips-000099.tar").write_bytes(b"of an earlier call with more clips")
    again = exchange.export_webdataset(cache, tmp_path / "a", **call)
    assert (again.written, again.there) == (1, first.written - 1)
    assert again.notes == ["1 shards of an earlier call, which this one does not need, were removed"]
    assert (tmp_path / "a" / names[0]).read_bytes() == (tmp_path / "b" / names[0]).read_bytes()


def test_a_series_of_shards_for_each_value(cache: Path, tmp_path: Path) -> None:
    exchange.export_webdataset(cache, tmp_path / "w", streams=["net/Map.1"], by="split", name="weizmann")
    found = {p.name: [s["__key__"] for s in samples(p)] for p in sorted((tmp_path / "w").glob("*.tar"))}
    assert found == {
        "weizmann-none-000000.tar": ["%5F_meta__"],
        "weizmann-test-000000.tar": ["v1%2E2", "ü"],
        "weizmann-train-000000.tar": ["bend/daria_bend", "%2E%2E/out", "a b"],
    }


def test_an_interrupted_shard_is_not_left(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space"):
        exchange.export_webdataset(cache, tmp_path / "w", streams=["net/Map.1"])
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["export.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streams": []}, "none; name each once"),
        ({"streams": ["vec", "vec"]}, "name each once"),
        ({"streams": ["vecs"]}, "did you mean 'vec'"),
        ({"streams": ["vec"], "view": 0}, "has no views"),
        ({"streams": ["net/Map.1"], "view": 2}, "views 0 to 1"),
        ({"streams": ["vec"], "by": "fold"}, "no such column"),
        ({"streams": ["vec"], "name": "a/b"}, "write letters"),
        ({"streams": ["vec"], "shard_size": 0.0}, "positive number of MB"),
    ],
)
def test_options_are_refused(cache: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        exchange.export_webdataset(cache, tmp_path / "w", **options)
    assert not (tmp_path / "w").exists()


def test_keys_and_fields() -> None:
    assert sample_key("a//b") == "a%2F%2Fb"
    assert sample_key("/a") == "%2Fa"
    assert field_name("i3d-rgb/mixed4a") == "i3d-rgb.mixed4a.npy"
    ids = ["a", "a.b", "a%2Eb", "a/b", "a//b", "a%2Fb", "__a", "%5F_a", "_a"]
    assert len({sample_key(clip) for clip in ids}) == len(ids)
