"""``unchanged.txt``: a call that finds nothing to do is told so at once the next time, while nothing has changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from make_videos import write_moving_squares

import kdcache
from kdcache.errors import KdcacheError, StoreError
from kdcache.extraction import planning, run
from kdcache.extraction.run import ExtractReport
from kdcache.extraction.unchanged import FILE, MOST
from kdcache.manifest import read_manifest
from kdcache.store import update_index
from kdcache.store.set_aside import Damage, save_set_aside


class Calls:
    """Extractions into one cache, of two videos under three names each; and which looked at their clips one by one."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.out = root, root / "out"
        self.looked: list[bool] = []
        real = planning.settled

        def settled(*arguments):
            self.looked[-1] = True
            return real(*arguments)

        monkeypatch.setattr(planning, "settled", settled)

    def extract(self, **options) -> ExtractReport:
        self.looked.append(False)
        given = {"streams": ["rgb"], "frames": 4, "short_side": 32, "bar": False, "manifest": "clips.csv"}
        given |= options
        return kdcache.extract(self.root / given.pop("manifest"), self.root, self.out, **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """Videos and the cache of them, called twice more."""
    root = tmp_path_factory.mktemp("unchanged") / "data"
    root.mkdir()
    write_moving_squares(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = Calls(root, monkeypatch)
        reports = [calls.extract() for _ in range(3)]
    assert [(r.clips, r.cached, r.extracted) for r in reports] == [(6, 0, 6), (6, 6, 0), (6, 6, 0)]
    assert calls.looked == [False, False, False]  # no index yet; what the call itself has left; the same again
    return root


@pytest.fixture
def calls(done, tmp_path, monkeypatch) -> Calls:
    """The same in a folder of this test, which is remembered, too."""
    shutil.copytree(done, tmp_path / "data", copy_function=shutil.copy2)
    calls = Calls(tmp_path / "data", monkeypatch)
    reports = [calls.extract() for _ in range(3)]
    assert {(r.cached, r.extracted) for r in reports} == {(6, 0)}
    assert calls.looked == [True, True, False]  # paths are others, and written down; the same again
    return calls


def touch(calls: Calls) -> None:
    os.utime(calls.root / "v0.mp4", ns=(0, 1))


def replace_source(calls: Calls) -> None:
    with (calls.root / "v0.mp4").open("ab") as file:
        file.write(b"more")


def remove_source(calls: Calls) -> None:
    (calls.root / "v0.mp4").unlink()


def remove_shard(calls: Calls) -> None:
    next(calls.out.glob("shard-*.h5")).unlink()


def set_aside(calls: Calls) -> None:
    name = next(calls.out.glob("shard-*.h5")).name
    save_set_aside(calls.out, [Damage(name, "rgb", 0, "v0", "a test")])


def forget_sources(calls: Calls) -> None:
    (calls.out / "sources.csv").unlink()


def relabel(calls: Calls) -> None:
    rows = pd.read_csv(calls.root / "clips.csv")
    rows.loc[0, "label"] = 7
    rows.to_csv(calls.root / "clips.csv", index=False)


def cut(calls: Calls) -> None:
    rows = pd.read_csv(calls.root / "clips.csv")
    rows.loc[0, ["start_s", "stop_s"]] = 0.1, 0.4
    rows.to_csv(calls.root / "clips.csv", index=False)


def leave_out(calls: Calls) -> None:
    pd.read_csv(calls.root / "clips.csv")[1:].to_csv(calls.root / "clips.csv", index=False)


def rewrite_index(calls: Calls) -> None:
    rows = pd.read_csv(calls.root / "clips.csv").assign(clip_id=lambda rows: "other-" + rows["clip_id"])
    rows.to_csv(calls.root / "more.csv", index=False)
    assert calls.extract(manifest="more.csv").cached == 6


CHANGES: list[tuple[Callable[[Calls], None], dict, tuple[int, int, int]]] = [
    (touch, {}, (6, 6, 0)),
    (replace_source, {}, (6, 5, 1)),
    (remove_source, {}, (6, 5, 0)),
    (remove_shard, {}, (6, 0, 6)),
    (set_aside, {}, (6, 3, 3)),
    (forget_sources, {}, (6, 6, 0)),
    (relabel, {}, (6, 6, 0)),
    (cut, {}, (6, 5, 1)),
    (leave_out, {}, (5, 5, 0)),
    (rewrite_index, {}, (6, 6, 0)),
    (lambda calls: None, {"short_side": 36}, (6, 0, 6)),
    (lambda calls: None, {"rehash": True}, (6, 6, 0)),
]


@pytest.mark.parametrize(("change", "options", "expected"), CHANGES)
def test_whatever_changes_is_looked_at(calls, change, options, expected):
    """The report is that of a call without the memory, and what it leaves is remembered again."""
    change(calls)
    report = calls.extract(**options)
    assert calls.looked[-1]
    assert (report.clips, report.cached, report.extracted) == expected
    assert len(report.failures) == (change is remove_source)
    for _ in range(3):
        after = calls.extract(**options)
        assert (after.cached, after.extracted) == (expected[0] - len(report.failures), 0)
    assert calls.looked[-1] == (change is remove_source or "rehash" in options)
    labels = pd.read_csv(calls.out / "manifest.csv", index_col="clip_id")["label"]
    assert (labels["v0"] == 7) == (change is relabel)


def test_a_dry_run_is_told_and_remembers_nothing(calls):
    assert (calls.extract(dry_run=True).cached, calls.looked[-1]) == (6, False)
    before = (calls.out / FILE).read_bytes()
    assert (calls.extract(dry_run=True, short_side=36).planned, calls.looked[-1]) == (2, True)
    (calls.out / FILE).unlink()
    assert (calls.extract(dry_run=True).cached, calls.looked[-1]) == (6, True)
    assert before
    assert not (calls.out / FILE).exists()


def test_a_damaged_index_is_named_as_without_it(calls):
    index = calls.out / "manifest.csv"
    data = bytearray(index.read_bytes())
    data[-5] ^= 1
    index.write_bytes(data)
    with pytest.raises(StoreError, match="has changed since kdcache wrote it"):
        calls.extract()


@pytest.mark.parametrize("content", [b"", b"\xff\x00" * 50, b"0" * 64 + b"\n"], ids=["empty", "bytes", "another"])
def test_what_the_file_holds_is_never_believed_for_more_than_it_says(calls, content):
    (calls.out / FILE).write_bytes(content)
    assert (calls.extract().cached, calls.looked[-1]) == (6, True)
    assert (calls.extract().cached, calls.looked[-1]) == (6, False)


def test_a_folder_in_its_place_is_named(calls):
    (calls.out / FILE).unlink()
    (calls.out / FILE).mkdir()
    with pytest.raises(KdcacheError, match=rf"{FILE}: no plain file"):
        calls.extract()


def test_a_disk_that_refuses_loses_only_the_memory(calls, monkeypatch):
    (calls.out / FILE).unlink()

    def refuse(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("kdcache.extraction.unchanged.atomic", refuse)
    assert calls.extract().cached == 6
    assert not (calls.out / FILE).exists()


def test_a_cache_that_changes_while_a_call_looks_is_not_remembered(calls, monkeypatch):
    (calls.out / FILE).unlink()
    real = planning.untouched

    def meanwhile(*arguments):
        same = real(*arguments)
        shutil.copyfile(next(calls.out.glob("shard-*.h5")), calls.out / "shard-00009.h5")
        return same

    monkeypatch.setattr(planning, "untouched", meanwhile)
    assert calls.extract().cached == 6
    assert not (calls.out / FILE).exists()


def set_aside_another(calls: Calls) -> None:
    save_set_aside(calls.out, [Damage("shard-00077.h5", "rgb", 0, "v0", "a test")])


def index_others(calls: Calls) -> None:
    rows = read_manifest(calls.root / "clips.csv").assign(clip_id=lambda rows: "other-" + rows["clip_id"])
    update_index(calls.out, rows, {})


def lose_shard(calls: Calls) -> None:
    max(calls.out.glob("shard-*.h5")).unlink()


@pytest.mark.parametrize("meanwhile", [None, set_aside_another, index_others, lose_shard])
def test_what_a_call_leaves_is_remembered_unless_others_have_changed_the_cache(calls, meanwhile, monkeypatch):
    cut(calls)  # one clip is to be extracted
    real = run.run_units

    def run_units(*arguments):
        real(*arguments)
        if meanwhile is not None:
            meanwhile(calls)

    monkeypatch.setattr(run, "run_units", run_units)
    before = (calls.out / FILE).read_bytes()
    assert calls.extract().extracted == 1
    assert ((calls.out / FILE).read_bytes() == before) == (meanwhile is not None)
    monkeypatch.setattr(run, "run_units", real)
    again = calls.extract()
    assert calls.looked[-1] == (meanwhile is not None)
    assert (again.cached, again.extracted) == ((5, 1) if meanwhile is lose_shard else (6, 0))


def test_a_call_in_which_a_clip_fails_is_not_remembered(calls):
    cut(calls)
    (calls.root / "v0.mp4").write_bytes(b"no video")
    before = (calls.out / FILE).read_bytes()
    assert len(calls.extract().failures) > 0
    assert (calls.out / FILE).read_bytes() == before


def test_the_latest_calls_are_remembered(calls):
    """Of other parts, as job arrays make them."""
    (calls.out / FILE).write_text("".join(f"{n:064x}\n" for n in range(MOST)))
    for _ in range(2):
        for n in (1, 2):
            assert calls.extract(part=(n, 2)).cached == 3
    assert calls.looked[-4:] == [True, True, False, False]
    lines = (calls.out / FILE).read_text().split()
    assert len(lines) == MOST
    assert lines[0] == f"{2:064x}"


def test_it_stays_on_its_machine(calls, tmp_path):
    kdcache.copy(calls.out, tmp_path / "copy")
    assert not (tmp_path / "copy" / FILE).exists()
