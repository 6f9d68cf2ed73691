"""What lies beside a cache's shards is input, too: broken lists, two writers, cells that spreadsheets compute."""

from __future__ import annotations

import csv
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from full_disk import files_of
from hypothesis import given, settings
from hypothesis import strategies as st
from make_videos import pictures, write

from kdcache import Cache
from kdcache.csv_text import BrokenTable, neutral, neutral_frame, original, original_frame, read_table
from kdcache.errors import KdcacheError, StoreError
from kdcache.extraction.run import extract
from kdcache.extraction.source_memory import Look, remember_looks
from kdcache.store import inspect, reindex, verify
from kdcache.store.failures import FILE, Failure, load_failures, save_failures, update_failures
from kdcache.store.lock import locked

quick = settings(derandomize=True, deadline=None, max_examples=60)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
CELL = st.one_of(TEXT, TEXT.map(lambda t: "=" + t), TEXT.map(lambda t: "'-" + t), st.just("-x8Vq"))


@quick
@given(CELL)
def test_no_text_is_left_for_a_spreadsheet_to_compute(text):
    shown = neutral(text)
    number = shown == text and text[:1] in "+-" and text.strip("+-.eE0123456789") == ""
    assert not shown or shown[0] not in "=+-@\t\r\n" or number
    assert original(shown) == text


def test_the_formulas_that_spreadsheets_run():
    for text in ("=cmd|'/c calc'!A1", "@SUM(1)", "+1+cmd", "-1+1", "\t=1", "\r=1"):
        assert neutral(text) == "'" + text
    for text in ("-1.5", "+2", "1e-3", "a=b", "'quoted'", "-.5E3"):
        assert neutral(text) == text


def test_tables_of_numbers_and_texts_are_neutral_and_read_back(tmp_path):
    table = pd.DataFrame(
        {"=row": ["-x8Vq", "@SUM(1)", None, "'-"], 3: [-1.5, 2, 3, 4], "settings": ["{}", "", "-3", "+"]}
    )
    before = table.copy()
    neutral_frame(table).to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(table, before)  # what was given is not changed
    with open(tmp_path / "table.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[:3] == [["'=row", "3", "settings"], ["'-x8Vq", "-1.5", "{}"], ["'@SUM(1)", "2.0", ""]]
    assert [line[2] for line in lines[3:]] == ["-3", "'+"]
    read = original_frame(pd.read_csv(tmp_path / "table.csv", keep_default_na=False))
    assert read["=row"].tolist() == ["-x8Vq", "@SUM(1)", "", "'-"]
    assert read["settings"].tolist() == ["{}", "", "-3", "+"]


@quick
@given(st.lists(st.builds(Failure, CELL, CELL, st.just("decode"), CELL, CELL, CELL), max_size=6))
def test_the_list_of_failures_reads_back(tmp_path_factory, failures):
    folder = tmp_path_factory.mktemp("list")
    save_failures(folder, failures)
    expected = {(f.clip_id, f.streams): f for f in failures}
    assert load_failures(folder) == sorted(expected.values())
    assert (folder / FILE).exists() == bool(failures)


@quick
@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda t: ("clip_id,source\n" + t).encode()))
def test_any_bytes_are_a_table_or_named(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "table.csv"
    path.write_bytes(content)
    try:
        rows = read_table(path, ["clip_id"])
    except BrokenTable:
        return
    assert all("clip_id" in row for row in rows)


def test_a_lock_that_is_no_plain_file(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreError, match=r"\.lock: no plain file, so nobody can hold it; remove it"), locked(tmp_path):
        pass
    (tmp_path / ".lock").rmdir()
    (tmp_path / ".lock").symlink_to("nowhere/lock")
    with pytest.raises(StoreError, match="remove it"), locked(tmp_path):
        pass


def test_a_table_that_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(BrokenTable, match="no plain file"):
        read_table(tmp_path / "table.csv", ["clip_id"])


def failure(clip: str, streams: str = "rgb") -> Failure:
    return Failure(clip, "v.mp4", "decode", "damaged", "k" * 32, streams)


def test_writers_change_only_their_own_rows(tmp_path):
    update_failures(tmp_path, [failure("a"), failure("b")], lambda f: f.clip_id in "ab")
    update_failures(tmp_path, [failure("c")], lambda f: f.clip_id in "cd")
    assert [f.clip_id for f in load_failures(tmp_path)] == ["a", "b", "c"]
    update_failures(tmp_path, [], lambda f: f.clip_id in "ab")
    assert [f.clip_id for f in load_failures(tmp_path)] == ["c"]
    update_failures(tmp_path, [], lambda f: True)
    assert not (tmp_path / FILE).exists()


def test_a_flipped_bit_of_the_list_is_named_or_its_row_is_not_believed(tmp_path):
    """Nothing is read that was not written; a clip whose row is lost is tried again."""
    rows = [failure("a"), failure("b", "rgb flow")]
    save_failures(tmp_path, rows)
    content = (tmp_path / FILE).read_bytes()
    seen = set()
    for place in range(0, len(content), 2):
        for bit in range(8):
            changed = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            (tmp_path / FILE).write_bytes(changed)
            try:
                found = load_failures(tmp_path)
            except StoreError as error:
                assert FILE in str(error)  # noqa: PT017
                seen.add("named")
            else:
                assert set(found) <= set(rows), (place, bit)
                seen.add(len(found))
    assert seen == {"named", 0, 1, 2}
    (tmp_path / FILE).write_text("clip_id,source,stage,reason\nmine,v.mp4,open,I say so\n")
    assert [f.clip_id for f in load_failures(tmp_path)] == ["mine"]


def test_a_list_is_read_again_once_the_lock_is_held(tmp_path, monkeypatch):
    from contextlib import contextmanager

    import kdcache.store.failures as module

    @contextmanager
    def late(folder):
        with locked(folder):
            save_failures(folder, [failure("of another run")])  # what was written while we waited
            yield

    monkeypatch.setattr(module, "locked", late)
    update_failures(tmp_path, [failure("a")], lambda f: f.clip_id == "a")
    assert [f.clip_id for f in load_failures(tmp_path)] == ["a", "of another run"]


def test_a_memory_that_cannot_be_written_is_one_short_warning(tmp_path, caplog):
    with files_of(10):
        remember_looks(tmp_path / "sources.csv", {("a", 1, 2): Look("a", 1, 2, "f" * 32)})
    assert caplog.messages == [
        f"{tmp_path}/sources.csv: not written (File too large), so the next call reads sources again"
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A data set of two clips, of which one is damaged, and its cache."""
    root, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("cache") / "out"
    for name in ("good", "bad"):
        write(root / f"{name}.mp4", pictures(6))
    (root / "bad.mp4").write_bytes((root / "bad.mp4").read_bytes()[:900])
    (root / "clips.csv").write_text("source\ngood.mp4\nbad.mp4\n")
    report = run(root, out)
    assert (report.extracted, len(report.failures)) == (1, 1)
    return root, out


def run(root: Path, out: Path, manifest: str = "clips.csv"):
    return extract(root / manifest, root=root, out=out, streams=["rgb"], bar=False)


@pytest.fixture
def copy(made, tmp_path) -> tuple[Path, Path]:
    shutil.copytree(made[1], tmp_path / "out")
    return made[0], tmp_path / "out"


def broken(content: bytes) -> list[bytes]:
    """Ways in which a file is spoilt."""
    rng = random.Random(0)
    half = content[: len(content) // 2]
    return [
        b"",
        bytes(rng.randrange(256) for _ in range(200)),
        half + b'"',
        b"\xff\xfe" + content,
        b"name,value\nx,1\n",
        content + b"one\n",
        content.splitlines()[0] + b"\n" + b"x" * 200_000 + b",1,2,3\n",
    ]


def calls(root: Path, out: Path) -> list:
    return [
        lambda: run(root, out),
        lambda: inspect(out),
        lambda: verify(out, progress=False),
        lambda: reindex(out),
        lambda: Cache(out).read("rgb", ["bad"]),
    ]


def sentence(call) -> str:
    try:
        call()
    except KdcacheError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["failures.csv", "sources.csv", "manifest.csv"])
@pytest.mark.parametrize("way", range(8))
def test_a_broken_side_file_is_named_or_made_anew(copy, name, way):
    root, out = copy
    content = (out / name).read_bytes()
    for call in calls(root, out):
        (out / name).unlink(missing_ok=True)
        if way == 7:
            os.mkfifo(out / name)
        else:
            (out / name).write_bytes(broken(content)[way])
        said = sentence(call)
        assert name in said or not said or "'bad'" in said  # the clip that is not cached
        assert name != "sources.csv" or not said or "'bad'" in said


@pytest.mark.parametrize("way", range(8))
def test_a_broken_list_of_damaged_arrays_is_named_by_every_command(copy, way):
    root, out = copy
    if way == 7:
        os.mkfifo(out / "damaged.csv")
    else:
        (out / "damaged.csv").write_bytes(
            broken(b"shard,stream,row,clip_id,reason\nshard-00000.h5,rgb,0,good,changed\n")[way]
        )
    shutil.copytree(root, out / "data")
    (out / "data/clips.csv").write_text("clip_id,source\nmore,good.mp4\n")
    said = [sentence(call) for call in [*calls(root, out)[1:4], lambda: run(out / "data", out)]]
    assert ["damaged.csv" in text for text in said] == [True] * 4


def test_two_runs_on_one_cache_keep_each_others_failures(made, tmp_path, monkeypatch):
    root = made[0]
    (root / "one.csv").write_text("source\ngood.mp4\n")
    (root / "other.csv").write_text("source\nbad.mp4\n")
    from kdcache.extraction import run as module

    def meanwhile(*arguments):
        """Another run lists its failure while this one computes."""
        monkeypatch.undo()
        run(root, tmp_path / "out", "other.csv")
        run_units(*arguments)

    run_units = module.run_units
    monkeypatch.setattr(module, "run_units", meanwhile)
    assert run(root, tmp_path / "out", "one.csv").extracted == 1
    assert [f.clip_id for f in load_failures(tmp_path / "out")] == ["bad"]


def test_clips_of_equal_content_fail_under_their_own_sources(made, tmp_path):
    root = shutil.copytree(made[0], tmp_path / "data")
    shutil.copy(root / "bad.mp4", root / "copy.mp4")
    (root / "clips.csv").write_text("clip_id,source\none,bad.mp4\ntwo,copy.mp4\n")
    assert run(root, tmp_path / "out").extracted == 0
    assert [(f.clip_id, f.source) for f in load_failures(tmp_path / "out")] == [("one", "bad.mp4"), ("two", "copy.mp4")]


def test_a_run_on_other_streams_keeps_a_failure(copy):
    root, out = copy
    save_failures(out, [failure("good", "flow"), failure("good", "rgb"), failure("good", "")])
    run(root, out)
    assert [(f.clip_id, f.streams) for f in load_failures(out)] == [("bad", "rgb"), ("good", "flow")]


def test_ids_like_formulas_are_kept_in_the_index_and_neutral_in_the_list(made, tmp_path):
    root = made[0]
    (root / "ids.csv").write_text("clip_id,source\n-x8Vq,bad.mp4\n=1+1,good.mp4\n")
    assert [f.clip_id for f in run(root, tmp_path, "ids.csv").failures] == ["-x8Vq"]
    with open(tmp_path / FILE, newline="") as file:
        assert [row["clip_id"] for row in csv.DictReader(file)] == ["'-x8Vq"]
    assert [f.clip_id for f in load_failures(tmp_path)] == ["-x8Vq"]
    assert pd.read_csv(tmp_path / "manifest.csv")["clip_id"].tolist() == ["-x8Vq", "=1+1"]
    assert run(root, tmp_path, "ids.csv").cached == 1


def test_nothing_is_written_where_nothing_changes(copy, monkeypatch):
    """As on a disk that may only be read; root may write everywhere, so writing itself is forbidden."""
    root, out = copy

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    real = os.open

    def read_only(path, flags, *arguments, **options):
        return refuse() if flags & (os.O_WRONLY | os.O_RDWR) else real(path, flags, *arguments, **options)

    for name in ("replace", "rename", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "open", read_only)
    report = run(root, out)
    assert (report.cached, report.extracted, len(report.failures)) == (1, 0, 1)
    (root / "clips.csv").touch()
    Cache(out).read("rgb", ["good"])
    inspect(out)
    assert verify(out, progress=False).ok
    (out / "moved").write_text("")  # opened by Python itself: only the calls above are forbidden
    shutil.copy(root / "good.mp4", root / "again.mp4")
    (root / "again.csv").write_text("source,clip_id\nagain.mp4,good\n")
    monkeypatch.setattr(os, "mkdir", os.mkdir)
    with pytest.raises(StoreError):  # the index does change
        run(root, out, "again.csv")
