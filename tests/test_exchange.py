"""Importers and exporters: numbers come back to the bit, nothing is dropped in silence, nothing leaves its folder."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kdcache
from kdcache.cli import main
from kdcache.data.open import backbone_state
from kdcache.errors import ClipError, WeightsError
from kdcache.exchange.import_lmdb import look_back, spread
from kdcache.exchange.npy_files import NpyFolder
from kdcache.exchange.recipes import imported_recipe
from kdcache.manifest import read_manifest, validate, write_manifest
from kdcache.sampling import Sampling
from kdcache.store import Cache, Record, commit_shard, inspect, load_index, reindex, update_index, verify
from kdcache.streams import axes_of, has_levels

FRAMES = 200  # of each source of the LMDB
SIZE = 6


def run(command: str, *arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(main, [*command.split(), *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.output


def vector(video: str, number: int) -> np.ndarray:
    """What the LMDB holds for a frame: float32 numbers that float16 cannot hold."""
    return np.random.default_rng([number, *video.encode()]).normal(size=SIZE).astype(np.float32)


@pytest.fixture
def rulstm(tmp_path: Path) -> Path:
    """Two sources in RULSTM's format, numbered from 1; P01_10 must not be taken for P01_1."""
    with lmdb.open(str(tmp_path / "rgb"), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for video in ("P01_1", "P01_10"):
            for number in range(1, FRAMES + 1 + 100 * (video == "P01_10")):
                transaction.put(f"{video}_frame_{number:010d}.jpg".encode(), vector(video, number).tobytes())
    return tmp_path / "rgb"


def manifest(path: Path, *rows: dict[str, Any]) -> Path:
    given = [{"source": "v.mp4", "start_s": None, "stop_s": None, "label": i % 2} | row for i, row in enumerate(rows)]
    write_manifest(validate(pd.DataFrame(given)), path)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    times = [(0.0, 2.0), (1.0, 5.5), (None, 6.0)]
    rows = [{"clip_id": f"c{i}", "group": "P01_1", "start_s": a, "stop_s": b} for i, (a, b) in enumerate(times)]
    return manifest(tmp_path / "clips.csv", *rows, {"clip_id": "whole", "group": "P01_1"})


def into(tmp_path: Path, rulstm: Path, clips: Path, *more: Any) -> list[Any]:
    start = [
        rulstm,
        "--manifest",
        clips,
        "--out",
        tmp_path / "out",
        "--stream",
        "rulstm/rgb",
        "--origin",
        "RULSTM test",
    ]
    return [*start, *more]


def exact_rulstm(stop: Fraction, steps: int, lag: Fraction) -> list[int]:
    """RULSTM's frame numbers in exact arithmetic."""
    numbers = [int((stop - lag - Fraction(steps - 1 - i, 4)) * 30 // 1) for i in range(steps)]
    first = min(n for n in numbers if n >= 1)
    return [n if n >= 1 else first for n in numbers]


def test_look_back_is_rulstms_sampling() -> None:
    differing = 0
    for start in range(9, 30000, 31):  # an action's first frame at 30 a second
        index = look_back(start / 30, 14, 0.25, 0.25, 30.0)
        assert (index + 1).tolist() == exact_rulstm(Fraction(start, 30), 14, Fraction(1, 4))
        # RULSTM/dataset.py's own lines: in floating point a whole product may fall below itself, never more
        published = np.floor((start / 30 - np.arange(0.25, 0.25 * 15, 0.25)[::-1]) * 30).astype(int)
        if published.min() >= 1:
            assert set((index + 1 - published).tolist()) <= {0, 1}
            differing += int((index + 1 != published).sum())
    assert differing < 0.02 * 14 * 900
    with pytest.raises(ClipError, match="leave the clip out"):  # number 0: RULSTM discards it too
        look_back(8 / 30, 14, 0.25, 0.25, 30.0)


def test_lmdb_steps_are_the_frames_before_the_end(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    said = run("import lmdb", *into(tmp_path, rulstm, clips, "--frames", 14, "--step", 0.25))
    assert said == "4 clips: 0 cached already, 4 imported.\n"
    cache = Cache(tmp_path / "out")
    assert cache.streams == ["rulstm/rgb"]
    assert cache.clips["group"].tolist() == ["P01_1"] * 4
    array = cache.read("rulstm/rgb", ["c0", "c1", "c2", "whole"])
    assert array.shape == (4, 1, 14, SIZE)
    assert array.dtype == np.float32
    ends = [Fraction(2), Fraction(11, 2), Fraction(6), Fraction(FRAMES, 30)]
    for clip, found, frames, stop in zip(
        cache.clips["clip_id"], array, cache.frames("rulstm/rgb", list(cache.clips["clip_id"])), ends, strict=True
    ):
        numbers = exact_rulstm(stop, 14, Fraction(0))
        assert found[0].tobytes() == np.stack([vector("P01_1", n) for n in numbers]).tobytes(), clip
        assert (frames + 1).tolist() == numbers


@pytest.mark.parametrize("frames", [look_back, spread])
def test_a_late_end_is_no_frame_number_that_wraps_around(frames) -> None:
    late = 2**32 / 30 + 1  # frame 30, in 32 bits
    how = (late, 14, 0.25, 0.25, 30.0) if frames is look_back else (0.0, late, Sampling(14), 30.0)
    with pytest.raises(ClipError, match=r"would be frame 4\.29e"):
        frames(*how)


def test_lmdb_spread_stays_in_the_clip(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    run("import lmdb", *into(tmp_path, rulstm, clips, "--frames", 5, "--anchor", "last"))
    cache = Cache(tmp_path / "out")
    c0, c1, c2, whole = (f.tolist() for f in cache.frames("rulstm/rgb", ["c0", "c1", "c2", "whole"]))
    assert c0 == [11, 23, 35, 47, 59]  # 60 frames in 2 s: the last of each fifth
    assert c1 == [30 + 27 * i - 1 for i in range(1, 6)]
    assert c2 == [36 * i - 1 for i in range(1, 6)]
    assert whole == [40 * i - 1 for i in range(1, 6)]
    assert np.array_equal(cache.read("rulstm/rgb", ["c1"])[0, 0, 2], vector("P01_1", c1[2] + 1))


def test_import_is_a_cache_like_any_other(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    call = into(tmp_path, rulstm, clips, "--frames", 4, "--dtype", "float16")
    run("import lmdb", *call)
    out = tmp_path / "out"
    index = load_index(out)
    assert run("import lmdb", *call) == "4 clips: 4 cached already, 0 imported.\n"
    assert [p.name for p in sorted(out.glob("*.h5"))] == ["shard-00000.h5"]
    assert verify(out, progress=False).ok
    assert "RULSTM test" in inspect(out)
    (out / "manifest.csv").unlink()
    rebuilt = reindex(out)
    pd.testing.assert_frame_equal(rebuilt[list(index.columns)].astype(str), index.astype(str))
    cache = Cache(out)
    expected = np.stack([vector("P01_1", int(f) + 1) for f in cache.frames("rulstm/rgb", ["c1"])[0]])
    assert np.array_equal(cache.read("rulstm/rgb", ["c1"])[0, 0], expected.astype(np.float16))
    with pytest.raises(WeightsError, match="was imported"):
        backbone_state(cache.recipe("rulstm/rgb"), None)


def test_a_changed_source_is_imported_anew(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    call = into(tmp_path, rulstm, clips, "--frames", 4, "--step", 0.25)
    run("import lmdb", *call)
    with lmdb.open(str(rulstm), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"P01_1_frame_0000000060.jpg", np.zeros(SIZE, np.float32).tobytes())  # the last frame of c0
    assert run("import lmdb", *call) == "4 clips: 3 cached already, 1 imported.\n"
    assert np.array_equal(Cache(tmp_path / "out").read("rulstm/rgb", ["c0"])[0, 0, -1], np.zeros(SIZE))


def test_missing_frames_are_listed(tmp_path: Path, rulstm: Path) -> None:
    rows = [{"clip_id": "good", "group": "P01_1", "stop_s": 3.0}, {"clip_id": "late", "group": "P01_1", "stop_s": 7.0}]
    rows += [{"clip_id": "other", "group": "P09_9"}]
    clips = manifest(tmp_path / "clips.csv", *rows)
    call = into(tmp_path, rulstm, clips, "--frames", 4, "--step", 0.25)
    assert "1 imported, 2 failed" in run("import lmdb", *call, status=3)
    failures = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("clip_id")
    assert failures.index.tolist() == ["late", "other"]
    assert "2 of its 4 frames" in failures["reason"]["late"]  # numbers 202 and 210 of 200
    assert "P01_1_frame_0000000202.jpg" in failures["reason"]["late"]
    assert "no key" in failures["reason"]["other"]
    cache = Cache(tmp_path / "out")
    assert cache.has("rulstm/rgb").tolist() == [True, False, False]
    with lmdb.open(str(rulstm), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for number in range(FRAMES + 1, FRAMES + 11):
            transaction.put(f"P01_1_frame_{number:010d}.jpg".encode(), vector("P01_1", number).tobytes())
    assert "1 cached already, 1 imported, 1 failed" in run("import lmdb", *call, status=3)
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["clip_id"].tolist() == ["other"]


def test_lmdb_round_trip_to_the_bit(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    # c2 looks back beyond the source's start, so it holds its first frame more than once
    run("import lmdb", *into(tmp_path, rulstm, clips, "--frames", 30, "--step", 0.25))
    back = tmp_path / "back"
    said = run("export lmdb", tmp_path / "out", "-o", back, "--stream", "rulstm/rgb")
    assert "4 clips" in said
    with lmdb.open(str(back), readonly=True, lock=False) as environment, environment.begin() as transaction:
        # as RULSTM/dataset.py reads it
        value = transaction.get(b"c0_frame_0000000060.jpg")
        assert np.array_equal(np.frombuffer(value, "float32"), vector("P01_1", 60))
        entries = transaction.stat()["entries"]
    assert entries == sum(
        len(set(f.tolist())) for f in Cache(tmp_path / "out").frames("rulstm/rgb", ["c0", "c1", "c2", "whole"])
    )
    again = run("export lmdb", tmp_path / "out", "-o", back, "--stream", "rulstm/rgb")
    assert f"0 vectors written, {entries} were there" in again
    more = ["--key", "{clip_id}_frame_{frame:010d}.jpg", "--at", "frames"]
    run(
        "import lmdb",
        back,
        "--manifest",
        back / "manifest.csv",
        "--out",
        tmp_path / "o2",
        "--stream",
        "x",
        "--origin",
        "y",
        *more,
    )
    first, second = Cache(tmp_path / "out"), Cache(tmp_path / "o2")
    ids = first.clips["clip_id"].tolist()
    pd.testing.assert_frame_equal(first.clips, second.clips)
    assert first.read("rulstm/rgb", ids).tobytes() == second.read("x", ids).tobytes()
    for a, b in zip(first.frames("rulstm/rgb", ids), second.frames("x", ids), strict=True):
        assert np.array_equal(a, b)


def test_lmdb_with_source_keys_is_the_original(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    # overlapping clips of one source share their frames' keys, and their vectors agree
    run("import lmdb", *into(tmp_path, rulstm, clips, "--frames", 20))
    run(
        "export lmdb",
        tmp_path / "out",
        "-o",
        tmp_path / "b",
        "--stream",
        "rulstm/rgb",
        "--key",
        "{group}_frame_{frame:010d}.jpg",
    )
    with (
        lmdb.open(str(tmp_path / "b"), readonly=True, lock=False) as a,
        lmdb.open(str(rulstm), readonly=True, lock=False) as b,
    ):
        with a.begin() as back, b.begin() as original:
            pairs = list(back.cursor())
            assert len(pairs) > 40
            assert all(original.get(key) == value for key, value in pairs)


def made(
    folder: Path, shape: tuple[int, ...], frames: int, dtype: str = "float16", count: int = 3
) -> dict[str, np.ndarray]:
    """A cache with one stream ``s``; ids that would leave a folder."""
    rng = np.random.default_rng(0)
    ids = ["../../evil", "a/b", ".hidden"][:count]
    arrays = {clip: rng.normal(size=shape).astype(dtype) for clip in ids}
    rows = validate(
        pd.DataFrame(
            [{"clip_id": c, "source": "v.mp4", "start_s": 1.0, "stop_s": 2.0, "label": 1} for c in [*ids, "bare"]]
        )
    )
    recipe = {"s": {"stream": "s", "layout": "fixed", "dtype": dtype}}
    index = np.arange(10, 10 + frames, dtype=np.int32)
    records = [
        Record(
            {"clip_id": c, "source": "v.mp4", "start_s": 1.0, "stop_s": 2.0, "label": 1},
            {},
            {"s": f"{i:032x}"},
            {"s": index},
            {"s": a},
        )
        for i, (c, a) in enumerate(arrays.items())
    ]
    update_index(folder, rows, commit_shard(folder, records, recipe).located)
    return arrays


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_npy_round_trip_to_the_bit(tmp_path: Path, dtype: str) -> None:
    arrays = made(tmp_path / "out", (2, 5, 3, 4, 4), 8, dtype)
    folder = tmp_path / "deep" / "npy"
    said = run("export npy", tmp_path / "out", "-o", folder, "--stream", "s")
    assert "3 files written" in said
    assert "1 clips of the cache have no s" in said
    names = ["%2E./%2E./evil.npy", "%2Ehidden.npy", "a/b.npy", "export.json", "manifest.csv"]
    assert sorted(str(p.relative_to(tmp_path / "deep")) for p in (tmp_path / "deep").rglob("*.*") if p.is_file()) == [
        f"npy/{n}" for n in names
    ]
    assert not (tmp_path / "evil.npy").exists()
    assert np.load(folder / "a" / "b.npy").tobytes() == arrays["a/b"].tobytes()
    more = ["--manifest", folder / "manifest.csv", "--out", tmp_path / "o2", "--stream", "s", "--origin", "round trip"]
    run("import npy", folder, *more, "--views", "--at", "frames")
    second = Cache(tmp_path / "o2")
    assert second.dtype("s") == np.dtype(dtype)
    for clip, array in arrays.items():
        assert second.read("s", [clip])[0].tobytes() == array.tobytes()
        assert second.frames("s", [clip])[0].tolist() == list(range(10, 18))


def test_an_export_that_was_killed_while_it_took_its_folder_goes_on(tmp_path: Path) -> None:
    made(tmp_path / "out", (2, 4, 3), 4)
    folder = tmp_path / "npy"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    (folder / f".export.json.{socket.gethostname()}.{gone.pid}.01234567.partial").write_text("{")
    assert "files written" in run("export npy", tmp_path / "out", "-o", folder, "--stream", "s")
    assert not list(folder.rglob("*.partial"))


def test_npy_export_goes_on_and_keeps_to_its_folder(tmp_path: Path) -> None:
    made(tmp_path / "out", (2, 4, 3), 4)
    folder = tmp_path / "npy"
    run("export npy", tmp_path / "out", "-o", folder, "--stream", "s")
    before = (folder / "a" / "b.npy").stat().st_mtime_ns
    (folder / "%2Ehidden.npy").unlink()
    (folder / "%2E." / "%2E." / "evil.npy").write_bytes(b"\x93NUMPY cut short")
    assert "2 files written, 1 were there" in run("export npy", tmp_path / "out", "-o", folder, "--stream", "s")
    assert (folder / "a" / "b.npy").stat().st_mtime_ns == before
    said = run("export npy", tmp_path / "out", "-o", folder, "--stream", "s", "--view", 1, status=1)
    assert "holds another export (view: None → 1)" in said
    assert "holds other files" in run("export npy", tmp_path / "out", "-o", tmp_path / "out", "--stream", "s", status=1)
    assert "views 0 to 1" in run(
        "export npy", tmp_path / "out", "-o", tmp_path / "n", "--stream", "s", "--view", 2, status=1
    )
    assert "did you mean 's'" in run("export npy", tmp_path / "out", "-o", tmp_path / "n", "--stream", "ss", status=1)
    assert not (tmp_path / "n").exists()


def test_lmdb_of_segments_takes_the_last_frame_of_each(tmp_path: Path) -> None:
    arrays = made(tmp_path / "out", (2, 4, 3), 8)
    run(
        "export lmdb",
        tmp_path / "out",
        "-o",
        tmp_path / "l",
        "--stream",
        "s",
        "--view",
        1,
        "--first",
        0,
        "--key",
        "{clip_id}:{frame}",
    )
    with lmdb.open(str(tmp_path / "l"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        found = {key.decode(): np.frombuffer(value, "<f4") for key, value in transaction.cursor()}
    assert len(found) == 12
    for n, number in enumerate((11, 13, 15, 17)):
        assert np.array_equal(found[f"a/b:{number}"], arrays["a/b"][1, n].astype(np.float32))


def test_lmdb_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    made(tmp_path / "maps", (1, 5, 3, 4, 4), 8, count=1)
    assert "holds maps" in run("export lmdb", tmp_path / "maps", "-o", tmp_path / "l", "--stream", "s", status=1)
    made(tmp_path / "odd", (1, 3, 4), 8, count=1)
    assert "8 frame numbers" in run("export lmdb", tmp_path / "odd", "-o", tmp_path / "l", "--stream", "s", status=1)
    made(tmp_path / "two", (1, 4, 3), 4)  # three clips of one source whose vectors differ
    call = ["export lmdb", tmp_path / "two", "-o", tmp_path / "l2", "--stream", "s"]
    assert "two different vectors for 'v.mp4_11'" in run(*call, "--key", "{source}_{frame}", status=1)
    assert "no column 'vid'" in run(*call, "--key", "{vid}_{frame}", status=1)
    assert "must hold {frame} once" in run(*call, "--key", "{clip_id}", status=1)
    for refused in ("odd", "two"):
        folder = tmp_path / ("l" if refused == "odd" else "l2")
        assert not folder.exists() or list(folder.iterdir()) == []


def test_lmdb_numbers_vectors_whose_frames_are_not_known(tmp_path: Path) -> None:
    (tmp_path / "npy").mkdir()
    arrays = {name: np.arange(n * 2, dtype=np.float32).reshape(n, 2) for name, n in (("a", 3), ("b", 5))}
    for name, array in arrays.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    rows = "clip_id,source,start_s,stop_s,label\na,a.mp4,0,1,0\nb,b.mp4,0,1,1\n"
    (tmp_path / "clips.csv").write_text(rows)
    options = ["--manifest", tmp_path / "clips.csv", "--stream", "s/v", "--origin", "x", "--axes", "TD"]
    run("import npy", tmp_path / "npy", "-o", tmp_path / "out", *options)
    said = run("export lmdb", tmp_path / "out", "-o", tmp_path / "l", "--stream", "s/v")
    assert "8 vectors written" in said
    assert "Of 2 clips the cache knows no frame numbers: their vectors are numbered from 0, plus --first 1." in said
    assert pd.read_csv(tmp_path / "l" / "manifest.csv")["frames"].tolist() == ["0 1 2", "0 1 2 3 4"]
    with lmdb.open(str(tmp_path / "l"), readonly=True, lock=False) as environment, environment.begin() as transaction:
        found = {key.decode(): np.frombuffer(value, "<f4") for key, value in transaction.cursor()}
    assert sorted(found)[:3] == [f"a_frame_{n:010d}.jpg" for n in (1, 2, 3)]
    assert np.array_equal(found["b_frame_0000000005.jpg"], arrays["b"][4])


def npy_folder(tmp_path: Path, **arrays: np.ndarray) -> list[Any]:
    folder = tmp_path / "npy"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    clips = manifest(tmp_path / "clips.csv", *({"clip_id": name} for name in arrays))
    return [folder, "--manifest", clips, "--out", tmp_path / "out", "--stream", "s", "--origin", "test"]


def test_npy_of_different_shapes_name_the_file(tmp_path: Path) -> None:
    call = npy_folder(tmp_path, a=np.zeros((3, 4)), b=np.zeros((2, 5)), c=np.zeros((3, 4)))
    said = run("import npy", *call, status=1)
    assert "b.npy: float64 [2, 5], where 2 files such as " in said
    assert "a.npy hold float64 [3, 4]" in said
    assert not (tmp_path / "out").exists()


def test_npy_failures_are_listed(tmp_path: Path) -> None:
    arrays = {
        name: np.full((3, 4), 1.0, np.float32) for name in ("good", "notfinite", "large", "cut", "pickle", "gone")
    }
    arrays["notfinite"][0, 0] = np.nan
    arrays["large"][0, 0] = 1e5
    call = npy_folder(tmp_path, **arrays)
    folder = tmp_path / "npy"
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-4])
    np.save(folder / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "gone.npy").rename(tmp_path / "gone.npy")
    (folder / "gone.npy").symlink_to(tmp_path / "gone.npy")  # leads out of the folder
    assert "1 imported, 5 failed" in run("import npy", *call, "--dtype", "float16", status=3)
    reasons = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("clip_id")["reason"]
    for clip, word in {
        "notfinite": "NaN",
        "large": "beyond float16",
        "cut": "cut.npy",
        "pickle": "objects",
        "gone": "out of",
    }.items():
        assert word in reasons[clip], reasons[clip]
    assert Cache(tmp_path / "out").read("s", ["good"]).shape == (1, 1, 3, 4)


def test_npy_in_class_folders(tmp_path: Path) -> None:
    (tmp_path / "npy" / "jump").mkdir(parents=True)
    np.save(tmp_path / "npy" / "jump" / "v1.npy", np.arange(4, dtype=np.float32))
    np.save(tmp_path / "secret.npy", np.arange(4, dtype=np.float32))
    assert NpyFolder(tmp_path / "npy").find(["jump/v1"]).name == "v1.npy"
    with pytest.raises(ClipError, match="leads out"):
        NpyFolder(tmp_path / "npy").find(["../secret"])


def test_two_origins_do_not_mix(tmp_path: Path) -> None:
    call = npy_folder(tmp_path, a=np.zeros((3, 4)), b=np.ones((3, 4)))
    run("import npy", *call)
    manifest(tmp_path / "clips.csv", {"clip_id": "b"})
    run("import npy", *call[:-1], "another network")
    with pytest.raises(kdcache.errors.StoreError, match="origin: 'test' → 'another network'"):
        Cache(tmp_path / "out").recipe("s")


def test_options_are_refused_in_a_sentence(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    call = into(tmp_path, rulstm, clips)
    assert "--frames T, or --at" in run("import lmdb", *call, status=1)
    assert "--lag belongs to --step" in run("import lmdb", *call, "--frames", 3, "--lag", 1, status=1)
    assert "no such column" in run("import lmdb", *call, "--at", "frames", status=1)
    assert "clip 'c0': source 'v.mp4' is not a list" in run("import lmdb", *call, "--at", "source", status=1)
    named = [a if a != "rulstm/rgb" else "flow" for a in call]
    assert "rulstm/flow" in run("import lmdb", *named, "--frames", 3, status=1)
    assert "data.mdb" in run("import lmdb", tmp_path, *call[1:], "--frames", 3, status=1)
    assert not (tmp_path / "out").exists()


def test_imported_maps_are_trained_on_and_drawn(tmp_path: Path) -> None:
    from pairs_cache import arrays, rows

    table = rows(16)
    (tmp_path / "npy").mkdir()
    for clip, array in zip(table["clip_id"], arrays(table), strict=True):
        np.save(tmp_path / "npy" / f"{clip}.npy", array[0])
    write_manifest(table, tmp_path / "clips.csv")
    more = [
        "--manifest",
        tmp_path / "clips.csv",
        "--out",
        tmp_path / "out",
        "--stream",
        "net/map",
        "--origin",
        "a net",
        "--axes",
        "VCTHW",
    ]
    run("import npy", tmp_path / "npy", *more)
    options: dict[str, Any] = {"head": "light", "epochs": 1, "device": "cpu", "out": tmp_path / "run"}
    kdcache.train("anticipation", shards=tmp_path / "out", **options)
    recipes = json.loads((tmp_path / "run" / "recipes.json").read_text())
    assert recipes["net/map"]["recipe"]["imported"] == {"from": "npy", "origin": "a net"}
    assert kdcache.show(tmp_path / "out", "p000-action", tmp_path / "sheet.png").stat().st_size > 1000
    assert read_manifest(tmp_path / "out" / "manifest.csv")["pair"].tolist() == table["pair"].tolist()


def test_axes_of_imports(tmp_path: Path) -> None:
    """Two imports with other axes are two recipes; what is said of vectors anyway changes nothing."""
    call = npy_folder(tmp_path, a=np.zeros((3, 4)), b=np.ones((3, 4)))

    def imported(*options: str) -> str:
        return run("import npy", *call, *options).strip()

    assert imported() == "2 clips: 0 cached already, 2 imported."
    assert axes_of(Cache(tmp_path / "out").recipe("s")) == "VTD"
    assert imported("--axes", "VTD") == "2 clips: 2 cached already, 0 imported."
    assert imported("--levels") == "2 clips: 0 cached already, 2 imported."
    assert has_levels(Cache(tmp_path / "out").recipe("s"))
    assert imported("--axes", "VND") == "2 clips: 2 cached already, 0 imported."
    assert imported() == "2 clips: 2 cached already, 0 imported."
    assert not has_levels(Cache(tmp_path / "out").recipe("s"))
    assert "the arrays have 3 dimensions" in run("import npy", *call, "--axes", "VTHW", status=1)
    assert "leave --levels out" in run("import npy", *call, "--axes", "VTD", "--levels", status=1)
    assert "not [views, levels, d]" in run("import npy", *call, "--views", "--levels", status=1)


def test_axes_of_lmdb(tmp_path: Path, rulstm: Path, clips: Path) -> None:
    call = into(tmp_path, rulstm, clips, "--frames", 5)
    run("import lmdb", *call)
    assert axes_of(Cache(tmp_path / "out").recipe("rulstm/rgb")) == "VTD"
    run("import lmdb", *call, "--levels", "--anchor", "last")
    assert axes_of(Cache(tmp_path / "out").recipe("rulstm/rgb")) == "VND"
    assert "--levels are shares" in run("import lmdb", *call, "--levels", "--step", 0.25, status=1)


def test_digests_of_imports_stay() -> None:
    """Imports from before axes could be stated are found again."""
    recipe = imported_recipe("rulstm/rgb", (1, 14, 1024), "float32", "lmdb", "RULSTM", sampling={})
    assert recipe == {
        "stream": "rulstm/rgb",
        "version": 1,
        "layout": "fixed",
        "dtype": "float32",
        "shape": [1, 14, 1024],
        "imported": {"from": "lmdb", "origin": "RULSTM", "sampling": {}},
    }


def test_rulstms_list_to_its_observed_frames(tmp_path: Path, shared: Path) -> None:
    """Actions of one video of RULSTM's own list: the vectors over one second before each action, at 4 a second."""
    lists = shared / "data" / "annotations" / "rulstm" / "ek55"
    rows = kdcache.datasets.manifest_for("rulstm", lists)
    rows = rows[(rows["group"] == "P01_02") & (rows["clamped"] == "0")].reset_index(drop=True)
    write_manifest(rows, tmp_path / "clips.csv")
    official = pd.read_csv(lists / "training.csv", header=None, skipinitialspace=True)
    official = official[official[1] == "P01_02"]
    count = int(official[3].max()) + 90
    with lmdb.open(str(tmp_path / "rgb"), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for number in range(1, count):
            transaction.put(f"P01_02_frame_{number:010d}.jpg".encode(), vector("P01_02", number).tobytes())
    call = into(tmp_path, tmp_path / "rgb", tmp_path / "clips.csv", "--frames", 11, "--step", 0.25)
    assert f"{len(rows)} imported" in run("import lmdb", *call)
    cache = Cache(tmp_path / "out")
    checked = 0
    for _, action in official.iterrows():
        clip = f"ek55-{int(action[0]):05d}@1-observed"
        if not (rows["clip_id"] == clip).any():
            continue
        numbers = exact_rulstm(Fraction(int(action[2]), 30), 11, Fraction(1))
        expected = np.stack([vector("P01_02", n) for n in numbers])
        assert cache.read("rulstm/rgb", [clip])[0, 0].tobytes() == expected.tobytes(), clip
        checked += 1
    assert checked > 50
