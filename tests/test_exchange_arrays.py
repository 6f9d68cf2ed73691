"""Imports of arrays one a clip or one a source: ragged streams, spans, names, and what is refused with its file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kdcache import exchange
from kdcache.cli import main
from kdcache.errors import ClipError, ManifestError, OptionError, SourceError
from kdcache.exchange.import_arrays import cut
from kdcache.exchange.npy_files import file_name
from kdcache.manifest import read_manifest, validate
from kdcache.sampling import clip_range
from kdcache.store import Cache, verify
from kdcache.store.failures import load_failures
from kdcache.streams import axes_of

SOURCE = {"source": "v.mp4", "start_s": None, "stop_s": None}


def clips(*ids: str, **columns: Any) -> pd.DataFrame:
    return validate(pd.DataFrame([{"clip_id": clip} | SOURCE | columns for clip in ids]))


def vectors(length: int, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, length]).normal(size=(length, size)).astype(np.float32)


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    for name, array in arrays.items():
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{name}.npy", array)
    return folder


def importing(folder: Path, manifest: pd.DataFrame, out: Path, **options: Any) -> exchange.ImportReport:
    return exchange.import_npy(folder, manifest, out, stream="s", origin="test", **options)


def test_vectors_of_different_lengths_become_a_ragged_stream(tmp_path: Path) -> None:
    arrays = {"a": vectors(7), "b": vectors(3), "c": vectors(12)}
    folder = saved(tmp_path / "npy", **arrays)
    report = importing(folder, clips(*arrays), tmp_path / "out")
    assert str(report).splitlines() == [
        "3 clips: 0 cached already, 3 imported.",
        "The arrays have 3 to 12 rows: a ragged stream of axes TD (time steps, vectors).",
    ]
    cache = Cache(tmp_path / "out")
    assert cache.recipe("s") == {
        "stream": "s",
        "version": 1,
        "layout": "ragged",
        "dtype": "float32",
        "axes": "TD",
        "imported": {"from": "npy", "origin": "test"},
    }
    assert axes_of(cache.recipe("s")) == "TD"
    for clip, found in zip("cab", cache.read("s", list("cab")), strict=True):
        assert found.tobytes() == arrays[clip].tobytes()
    assert cache.length("s", "c") == 12
    assert verify(tmp_path / "out", progress=False).ok
    # stated, it is the same stream, also where a later part of the clips happens to have one length
    assert str(importing(folder, clips("a"), tmp_path / "out", axes="TD")) == (
        "1 clips: 1 cached already, 0 imported.\n2 files of "
        + f"{folder} belong to no clip of the manifest, such as b.npy."
    )


def test_ragged_streams_come_back_from_an_export(tmp_path: Path) -> None:
    arrays = {"a": vectors(7), "x/b": vectors(3)}
    folder = tmp_path / "npy"
    (folder / "x").mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    manifest = clips(*arrays).assign(at=[" ".join(map(str, range(n))) for n in (7, 3)])
    importing(folder, manifest, tmp_path / "out", at="at")
    assert Cache(tmp_path / "out").frames("s", ["x/b"])[0].tolist() == [0, 1, 2]
    back = exchange.export_npy(tmp_path / "out", tmp_path / "back", stream="s")
    assert str(back).endswith("2 clips; 2 files written, 0 were there.")
    exchange.export_lmdb(tmp_path / "out", tmp_path / "lmdb", stream="s")
    again = importing(tmp_path / "back", tmp_path / "back" / "manifest.csv", tmp_path / "two", at="frames")
    assert again.imported == 2
    assert Cache(tmp_path / "two").read("s", ["x/b"])[0].tobytes() == arrays["x/b"].tobytes()
    with pytest.raises(OptionError, match="has no views"):
        exchange.export_npy(tmp_path / "out", tmp_path / "v", stream="s", view=0)


def test_maps_of_different_lengths_are_ragged_when_stated(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", a=np.zeros((4, 2, 3, 3), np.float16), b=np.ones((2, 2, 3, 3), np.float16))
    with pytest.raises(SourceError, match="where only lengths differ, write --axes with T first"):
        importing(folder, clips("a", "b"), tmp_path / "out")
    assert importing(folder, clips("a", "b"), tmp_path / "out", axes="TCHW").imported == 2
    assert Cache(tmp_path / "out").read("s", ["b"])[0].shape == (2, 2, 3, 3)
    with pytest.raises(OptionError, match="name each axis"):
        importing(folder, clips("a", "b"), tmp_path / "out", axes="TD")
    for axes in ("TND", "TVD", "TDD", "T"):
        with pytest.raises(OptionError):
            importing(folder, clips("a", "b"), tmp_path / "out", axes=axes)


def test_files_that_do_not_make_one_stream_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", a=vectors(7), b=vectors(3, 5), c=vectors(3))
    with pytest.raises(
        SourceError, match=r"b\.npy: float32 \[3, 5\], where 2 files such as .*a\.npy hold float32 \[7, 4\]"
    ):
        importing(folder, clips("a", "b", "c"), tmp_path / "out")
    saved(folder, b=vectors(3).astype(np.float64))
    with pytest.raises(SourceError, match=r"b\.npy: float64 \[3, 4\], where 2 files"):
        importing(folder, clips("a", "b", "c"), tmp_path / "out")
    saved(folder, a=np.zeros((2, 3), np.complex64))
    with pytest.raises(SourceError, match=r"a\.npy: complex64 cannot be cached"):
        importing(folder, clips("a"), tmp_path / "out")
    with pytest.raises(SourceError, match=r"not one of 1 clips can be imported; the first: .* has no z\.npy"):
        importing(folder, clips("z"), tmp_path / "out")
    with pytest.raises(SourceError, match="no such folder"):
        importing(tmp_path / "none", clips("z"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failures_name_their_file(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "npy", good=vectors(3), nan=np.full((2, 4), np.nan, np.float32), none=vectors(0), one=vectors(1)
    )
    (folder / "text.npy").write_text("no array")
    report = importing(folder, clips("good", "nan", "none", "text", "gone"), tmp_path / "out")
    assert (report.imported, [f.clip_id for f in report.failures]) == (1, ["nan", "none", "text", "gone"])
    assert report.notes[-1] == f"1 file of {folder} belongs to no clip of the manifest, such as one.npy."
    reasons = {failure.clip_id: failure.reason for failure in load_failures(tmp_path / "out")}
    for clip, words in {"nan": "NaN", "none": "is empty", "text": "not a .npy file"}.items():
        assert words in reasons[clip]
        assert f"{clip}.npy" in reasons[clip]
    assert reasons["gone"].endswith("has no gone.npy; put it there, or leave the clip out.")


def test_npz_with_one_array(tmp_path: Path) -> None:
    folder = tmp_path / "npz"
    folder.mkdir()
    np.savez_compressed(folder / "a.npz", vectors(4))
    np.savez(folder / "b.npz", features=vectors(4, seed=1))
    np.savez(folder / "two.npz", x=vectors(4), y=vectors(4))
    np.savez(folder / "pickle.npz", np.array([{}], dtype=object))
    whole = (folder / "b.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "long.npz", "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    report = importing(folder, clips("a", "b", "two", "pickle", "cut", "long"), tmp_path / "out")
    assert report.imported == 2
    assert Cache(tmp_path / "out").read("s", ["b"])[0, 0].tobytes() == vectors(4, seed=1).tobytes()
    reasons = {f.clip_id: f.reason for f in report.failures}
    for clip, words in {
        "two": "holds 2 arrays (x, y), not one",
        "pickle": "pickled",
        "cut": "cut.npz",
        "long": "as long",
    }.items():
        assert words in reasons[clip]


def test_clips_are_cut_out_of_their_sources(tmp_path: Path) -> None:
    folder = tmp_path / "npy"
    (folder / "P01").mkdir(parents=True)
    whole = {"P01/a": vectors(10), "b": vectors(6, seed=1)}
    for name, array in whole.items():
        np.save(folder / f"{name}.npy", array)
    rows = [
        {"clip_id": "first", "source": "P01/a.mp4", "start_s": None, "stop_s": 2.0},
        {"clip_id": "middle", "source": "P01/a.mp4", "start_s": 1.0, "stop_s": 3.5},
        {"clip_id": "between", "source": "P01/a.mp4", "start_s": 2.1, "stop_s": 2.4},
        {"clip_id": "all", "source": "P02/b.mp4", "start_s": None, "stop_s": None},  # by the file's own name
        {"clip_id": "late", "source": "P02/b.mp4", "start_s": 3.0, "stop_s": 4.0},
        {"clip_id": "long", "source": "P02/b.mp4", "start_s": 1.0, "stop_s": 3.6},
    ]
    report = importing(folder, validate(pd.DataFrame(rows)), tmp_path / "out", per="source", fps=2.0)
    cache = Cache(tmp_path / "out")
    assert cache.recipe("s")["imported"] == {"from": "npy", "origin": "test", "fps": 2.0}
    assert (cache.recipe("s")["layout"], cache.recipe("s")["axes"]) == ("ragged", "TD")
    expected = {"first": (0, 4), "middle": (2, 7), "between": (4, 5), "all": (0, 6)}
    for clip, (low, high) in expected.items():
        source = whole["b" if clip == "all" else "P01/a"]
        assert cache.read("s", [clip])[0].tobytes() == source[low:high].tobytes(), clip
        assert cache.frames("s", [clip])[0].tolist() == list(range(low, high))
    assert {f.clip_id: f.reason for f in report.failures} == {
        "late": "s: it starts at 3 s but its source's array ends at 3.000 s; correct --fps or it.",
        "long": "s: it stops at 3.6 s but its source's array ends at 3.000 s; correct --fps or it.",
    }
    assert report.notes == []
    again = importing(folder, validate(pd.DataFrame(rows[:4])), tmp_path / "out", per="source", fps=2.0)
    assert (again.cached, again.imported) == (4, 0)


def test_absolute_sources_come_in_and_go_out(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", a=vectors(8))
    rows = pd.DataFrame([{"clip_id": "x", "source": "/videos/a.mp4", "start_s": 0.0, "stop_s": 1.0}])
    with pytest.raises(ManifestError, match="--allow-absolute"):
        importing(folder, rows, tmp_path / "out", per="source", fps=4)
    report = importing(folder, rows, tmp_path / "out", per="source", fps=4, allow_absolute=True)
    assert (report.imported, report.notes) == (1, [])
    exchange.export_npy(tmp_path / "out", tmp_path / "back", stream="s")
    written = tmp_path / "back" / "manifest.csv"
    assert read_manifest(written, allow_absolute=True)["source"].tolist() == ["/videos/a.mp4"]
    call = ["import", "npy", tmp_path / "back", "--manifest", written, "-o", tmp_path / "two", "--stream", "s"]
    call += ["--origin", "test", "--at", "frames", "--axes", "TD"]
    assert CliRunner().invoke(main, [str(c) for c in call]).exit_code == 1
    result = CliRunner().invoke(main, [str(c) for c in [*call, "--allow-absolute"]])
    assert result.exit_code == 0, result.output
    assert Cache(tmp_path / "two").read("s", ["x"])[0].tobytes() == vectors(8)[:4].tobytes()


def test_a_clip_before_the_first_row_shows_nothing_later(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", v=vectors(8))
    rows = clips("early", "first").assign(start_s=[0.0, 0.5], stop_s=[0.5, 1.1])
    report = importing(folder, rows, tmp_path / "out", per="source", fps=2, offset=1.0)
    assert {f.clip_id: f.reason for f in report.failures} == {
        "early": "s: it stops at 0.5 s but its source's array begins at 1 s; correct --offset or leave it out."
    }
    assert Cache(tmp_path / "out").frames("s", ["first"])[0].tolist() == [0]
    for stop in (0.25, 1.0):  # half-open: a clip that stops at the first row has not seen it
        with pytest.raises(ClipError, match="begins at 1 s"):
            cut(0.0, stop, 8, 2.0, 1.0)
    assert cut(1.6, 1.9, 8, 2.0, 1.0) == (1, 2)  # between two rows: the one before


def test_classes_numbered_otherwise_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", a=vectors(3), b=vectors(3), c=vectors(3))
    importing(folder, clips("a", label="walk"), tmp_path / "out")
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*"))
    with pytest.raises(OptionError, match=r"label 0 is class 'walk', and in this manifest, .* it is 'run'"):
        importing(folder, clips("b", label="run"), tmp_path / "out")
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "out").rglob("*")) == before
    assert importing(folder, clips("c", label="walk"), tmp_path / "out").failures == []


def test_a_column_names_the_sources(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", video_1=vectors(8))
    rows = clips("x", "y", group="video_1").assign(start_s=[0.0, 1.0], stop_s=[1.0, 2.0])
    importing(folder, rows, tmp_path / "out", per="source", fps=4, key="{group}", offset=0.125, dtype="float16")
    cache = Cache(tmp_path / "out")
    assert cache.frames("s", ["y"])[0].tolist() == [4, 5, 6, 7]  # times 1.125 to 1.875 s
    assert cache.recipe("s")["imported"]["offset"] == 0.125
    assert cache.dtype("s") == np.float16


def test_one_file_for_two_sources_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "npy", v=vectors(8))
    rows = clips("x", "y").assign(source=["P01/v.mp4", "P02/v.mp4"])
    with pytest.raises(SourceError, match=r"v\.npy: both 'P01/v.mp4' and 'P02/v.mp4' lead to it"):
        importing(folder, rows, tmp_path / "out", per="source", fps=1)


@given(
    rows=st.integers(2, 200),
    fps=st.sampled_from([0.5, 1.5625, 4.0, 24000 / 1001, 25.0, 30.0]),
    start=st.none() | st.floats(0, 20),
    length=st.none() | st.floats(0.01, 20),
)
def test_spans_are_cut_as_frames_are(rows: int, fps: float, start: float | None, length: float | None) -> None:
    """At the rates of videos the rule is that of extraction; the array's end is more lenient at rates below 2."""
    stop = None if length is None else (start or 0.0) + length
    try:
        found = cut(start, stop, rows, fps)
    except ClipError:
        with pytest.raises(ClipError):
            clip_range(np.arange(rows) / fps, np.nan if start is None else start, np.nan if stop is None else stop)
        return
    end = rows / fps
    assert 0 <= found[0] < found[1] <= rows
    if (start is None or start < end - 1e-3) and (stop is None or stop <= end + 0.5):
        assert found == clip_range(
            np.arange(rows) / fps, np.nan if start is None else start, np.nan if stop is None else stop
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per": "source"}, "needs --fps"),
        ({"per": "source", "fps": 1e308}, "needs --fps"),
        ({"per": "source", "fps": 1.0, "offset": float("nan")}, "--offset is in seconds"),
        ({"fps": 25.0}, "add --per source"),
        ({"offset": 1.0}, "add --per source"),
        ({"per": "source", "fps": 1.0, "views": True}, "leave out --views"),
        ({"per": "source", "fps": 1.0, "axes": "VTD"}, "T first"),
        ({"per": "frame"}, "choose clip or source"),
        ({"dtype": "uint8"}, "choose float16 or float32"),
        ({"axes": "TD", "views": True}, "no views"),
        ({"axes": "VTD", "levels": True}, "leave --levels out"),
        ({"key": "{video}"}, "no column 'video'"),
        ({"key": "x"}, "one array for all clips"),
        ({"key": "{clip_id:>9}"}, "takes a format"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    folder = saved(tmp_path / "npy", a=vectors(3))
    with pytest.raises(OptionError, match=words):
        importing(folder, clips("a"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_file_names_stay_in_the_folder() -> None:
    assert file_name("bend/daria_bend") == "bend/daria_bend.npy"
    assert file_name("../../etc") == "%2E./%2E./etc.npy"
    assert file_name("/etc/x") == "%2Fetc%2Fx.npy"
    assert file_name("a//b") == "a%2F%2Fb.npy"
    assert file_name("a.npy/b") == "a.npy%2Fb.npy"  # a.npy is the file of clip a
    assert file_name("manifest.csv/b") == "manifest.csv%2Fb.npy"
    assert file_name("c:\\x%") == "c%3A%5Cx%25.npy"
    names = ["a", "a/b", "a//b", "/a/b", "a%2Fb", "a.npy", "a.npy/b", "..", "../a", ".a"]
    assert len({file_name(name) for name in names}) == len(names)
