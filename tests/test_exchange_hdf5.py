"""Imports from HDF5 files: data sets by clip, one array with names, and what could lead out of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from kdcache import exchange
from kdcache.errors import OptionError, SourceError
from kdcache.exchange.hdf5_text import read_texts
from kdcache.manifest import validate
from kdcache.store import Cache

RNG = np.random.default_rng(0)
VECTORS = {clip: RNG.normal(size=(n, 4)).astype(np.float32) for clip, n in [("a", 3), ("jump/b", 5), ("c", 2)]}


def clips(*ids: str, **columns: Any) -> pd.DataFrame:
    row = {"source": "v.mp4", "start_s": None, "stop_s": None}
    return validate(pd.DataFrame([{"clip_id": clip} | row | columns for clip in ids]))


def importing(path: Path, manifest: pd.DataFrame, out: Path, **options: Any) -> exchange.ImportReport:
    return exchange.import_hdf5(path, manifest, out, stream="s", origin="test", **options)


def reasons(report: exchange.ImportReport) -> dict[str, str]:
    return {failure.clip_id: failure.reason for failure in report.failures}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Data sets in groups, some compressed as h5py's users do, and one that no clip asks for."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("a", data=VECTORS["a"])
        file.create_dataset("jump/b", data=VECTORS["jump/b"], compression="gzip", shuffle=True, chunks=(2, 4))
        file.create_dataset("c", data=VECTORS["c"].astype(">f4"), compression="lzf")
        file.create_dataset("jump/unused", data=VECTORS["a"])
        file["again"] = file["jump"]  # a plain link that makes a circle
        file["jump/self"] = file["jump"]
    return tmp_path / "f.h5"


def test_a_data_set_a_clip(path: Path, tmp_path: Path) -> None:
    report = importing(path, clips(*VECTORS, "gone", "jump"), tmp_path / "out")
    cache = Cache(tmp_path / "out")
    assert cache.recipe("s")["imported"] == {"from": "hdf5", "origin": "test"}
    assert (cache.recipe("s")["layout"], cache.recipe("s")["axes"]) == ("ragged", "TD")
    for clip, found in zip(VECTORS, cache.read("s", list(VECTORS)), strict=True):
        assert np.array_equal(found, VECTORS[clip])
        assert found.dtype == np.float32
    assert reasons(report) == {
        "gone": f"s: {path} has no data set 'gone'; put it there, or leave the clip out.",
        "jump": f"s: {path} has no data set 'jump'; put it there, or leave the clip out.",
    }
    (note,) = [note for note in report.notes if "belong" in note]
    assert note.startswith(f"1 data set of {path} belongs to no clip of the manifest, such as ")
    assert importing(path, clips(*VECTORS), tmp_path / "out").cached == 3


def test_keys_and_sources(path: Path, tmp_path: Path) -> None:
    rows = clips("x").assign(source="jump/b.mp4", start_s=1.0, stop_s=2.0)
    importing(path, rows, tmp_path / "out", per="source", fps=2)
    assert np.array_equal(Cache(tmp_path / "out").read("s", ["x"])[0], VECTORS["jump/b"][2:4])
    one = clips("b", kind="jump")
    importing(path, one, tmp_path / "two", key="{kind}/{clip_id}")
    assert Cache(tmp_path / "two").read("s", ["b"]).shape == (1, 1, 5, 4)  # one shape: a fixed stream


@pytest.mark.parametrize("names", ["variable", "fixed", "numbers"])
def test_rows_of_one_array(tmp_path: Path, names: str) -> None:
    ids = ["7", "3", "5"]
    data = RNG.normal(size=(3, 6)).astype(np.float16)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["all/data"] = data
        stored: Any = {"variable": ids, "fixed": np.array(ids, "S3"), "numbers": np.array(ids, int)}[names]
        file.create_dataset("all/names", data=stored)
        file["other"] = np.zeros(4)
    report = importing(tmp_path / "f.h5", clips("3", "7", "9"), tmp_path / "out", ids="all/names")
    cache = Cache(tmp_path / "out")
    assert np.array_equal(cache.read("s", ["3", "7"])[:, 0], data[[1, 0]])
    assert list(reasons(report)) == ["9"]
    assert report.notes == [
        f"1 row of data set 'all/data' of {tmp_path / 'f.h5'} belongs to no clip of the manifest, such as '5'."
    ]


def test_rows_that_cannot_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["x"], file["y"], file["short"] = np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((1, 3))
        file.create_dataset("ids", data=["a", "b"])
        file.create_dataset("twice", data=["a", "a"])
    manifest, out = clips("a"), tmp_path / "out"
    with pytest.raises(OptionError, match="as many rows as 'ids': x, y; name one with --data"):
        importing(path, manifest, out, ids="ids")
    with pytest.raises(SourceError, match=r"'short' of .* has shape \[1, 3\], and 'ids' names 2 rows"):
        importing(path, manifest, out, ids="ids", data="short")
    with pytest.raises(SourceError, match=r"'twice' of .* names 1 rows more than once \(such as 'a'\)"):
        importing(path, manifest, out, ids="twice", data="x")
    with pytest.raises(SourceError, match="not a list of names"):
        importing(path, manifest, out, ids="x", data="y")
    with pytest.raises(SourceError, match=r"'twice' of .* holds object, not numbers"):
        importing(path, manifest, out, ids="ids", data="twice")
    with pytest.raises(OptionError, match="did you mean 'ids'"):
        importing(path, manifest, out, ids="idz")
    with pytest.raises(OptionError, match="needs --ids"):
        importing(path, manifest, out, data="x")
    assert importing(path, manifest, out, ids="ids", data="x").imported == 1


def test_nothing_leads_out_of_the_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.zeros((3, 4), np.float32)
    (tmp_path / "raw.bin").write_bytes(bytes(48))
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file["good"] = np.zeros((3, 4), np.float32)
        file["soft"] = h5py.SoftLink("/good")
        file["external"] = h5py.ExternalLink("secret.h5", "/a")
        file["group/leads"] = h5py.ExternalLink("secret.h5", "/")
        layout = h5py.VirtualLayout((3, 4), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a", (3, 4))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", (3, 4), np.float32, external=[(str(tmp_path / "raw.bin"), 0, 48)])
        file.create_dataset("text", data=["a", "b"])
        file.create_dataset("reference", data=file["good"].ref, dtype=h5py.ref_dtype)
        file.create_dataset("pairs", data=np.zeros(3, [("x", "f4"), ("y", "f4")]))
        file.create_dataset("hole", (4, 4), np.float32, chunks=(2, 4))[:2] = 1
        file.create_dataset("empty", data=h5py.Empty("f4"))
    ids = [
        "good",
        "soft",
        "external",
        "group/leads/a",
        "virtual",
        "outside",
        "text",
        "reference",
        "pairs",
        "hole",
        "empty",
    ]
    report = importing(path, clips(*ids, "../f.h5", "/good", "."), tmp_path / "out")
    assert report.imported == 1
    found = reasons(report)
    words = dict.fromkeys(["soft", "external", "group/leads/a"], "is behind a link")
    words |= dict.fromkeys(["text", "reference", "pairs"], "not numbers")
    words |= {"virtual": "assembled from other files", "outside": "in another file", "hole": "lacks some of its bytes"}
    words |= {"empty": "is empty", "../f.h5": "has no data set", "/good": "has no data set", ".": "has no data set"}
    assert found.keys() == words.keys()
    for clip, expected in words.items():
        assert expected in found[clip], found[clip]
        assert str(path) in found[clip]


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(SourceError, match=r"text\.h5: cannot be read as HDF5"):
        importing(tmp_path / "text.h5", clips("a"), tmp_path / "out")
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.arange(4000.0).reshape(1000, 4), compression="gzip", chunks=(1000, 4))
        file.create_dataset("b", data=np.zeros((2, 4)))
        offset = file["a"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 64)
    report = importing(path, clips("a", "b"), tmp_path / "out")
    assert report.imported == 1
    assert "data set 'a' of" in reasons(report)["a"]
    assert "is damaged" in reasons(report)["a"]


def test_names_of_variable_length_are_read_without_hdf5(tmp_path: Path) -> None:
    """HDF5 may loop for ever over a damaged heap of texts, so the heap is parsed here."""
    path, ids = tmp_path / "f.h5", [f"clip-{i}-é" * (i % 40 + 1) for i in range(2000)]  # many collections of 4 kB
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(4000, dtype=np.float32).reshape(2000, 2)
        file.create_dataset("ids", data=ids)
        file.create_dataset("chunked", data=ids, chunks=(100,), compression="gzip")
    with h5py.File(path) as file:
        assert read_texts(path, file["ids"]) == file["ids"].asstr()[()].tolist() == ids
    importing(path, clips(ids[1], ids[1999]), tmp_path / "out", ids="ids")
    assert Cache(tmp_path / "out").read("s", [ids[1999]])[0, 0].tolist() == [3998.0, 3999.0]
    with pytest.raises(SourceError, match=r"write them with numpy\.array\(names, 'S'\)"):
        importing(path, clips("x"), tmp_path / "two", ids="chunked", data="data")
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    for position, value in [
        (heap, b"X"),
        (heap + 8, b"\xff" * 6),
        (heap + 24, b"\xff" * 6),
    ]:  # name, size, object's size
        path.write_bytes(whole[:position] + value + whole[position + len(value) :])
        with pytest.raises(SourceError, match="is damaged"):
            importing(path, clips(ids[1]), tmp_path / "three", ids="ids")
