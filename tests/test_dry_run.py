"""What is said before an extraction: time with the cores there are, weights that are missing, processes of ``auto``."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from click.testing import CliRunner
from make_videos import pictures, write

import kdcache
from kdcache import runtime
from kdcache.backbones import weights as registry
from kdcache.cli.root import main
from kdcache.errors import OptionError
from kdcache.extraction import estimate
from kdcache.extraction.estimate import WORKER_BYTES, automatic_workers
from kdcache.extraction.plan import Plan, WorkUnit
from kdcache.extraction.worker import WorkerConfig
from kdcache.runs.ablation.jobs import PROCESS_BYTES, workers_for
from kdcache.runtime import worker_count

NAN = float("nan")
CALL = {"bar": False, "device": "cpu", "frames": 8, "size": 32}


@pytest.fixture
def root(tmp_path):
    """Six videos in two class folders."""
    folder = tmp_path / "videos"
    for i in range(6):
        path = folder / "ab"[i % 2] / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, pictures(4, 64, 48, seed=i))
    return folder


@pytest.fixture
def rows(root):
    return pd.DataFrame({"source": [f"{'ab'[i % 2]}/{i}.mp4" for i in range(6)]})


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A machine without weights; fetching any fails the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("KDCACHE_WEIGHTS", raising=False)
    monkeypatch.setattr(registry, "fetch", lambda name: pytest.fail(f"fetched {name}"))


@pytest.mark.parametrize(
    ("workers", "cores", "share"), [(1, 4, 1), (2, 4, 2), (64, 4, 4), (64, 2, 2), (3, 64, 3), (64, 64, 6)]
)
def test_time_is_shared_by_no_more_workers_than_cores_and_units(
    root, rows, tmp_path, monkeypatch, workers, cores, share
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for module in ("extraction.run", "extraction.estimate", "runtime"):
        monkeypatch.setattr(f"kdcache.{module}.cores", lambda: cores)
    monkeypatch.setattr(estimate, "_seconds_alone", lambda plan, config: (100.0, 20.0))
    report = kdcache.extract(rows, root, tmp_path / "out", ["rgb"], workers=workers, dry_run=True, **CALL)
    assert report.seconds == 120 / share
    assert report.workers == min(workers, 6)
    assert report.threads == max(1, cores // report.workers)
    assert f"{report.workers} worker" in str(report)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("workers", "seconds"), [(1, 100), (2, 50), (5, 20), (8, 20)])
def test_workers_share_a_gpu(tmp_path, monkeypatch, workers, seconds):
    """Its part of the work takes place while they decode, and more of them do not shorten it."""
    monkeypatch.setattr(estimate, "cores", lambda: 8)
    monkeypatch.setattr(estimate, "_seconds_alone", lambda plan, config: (100.0, 20.0))
    plan = Plan(units=[WorkUnit(("rgb",), ())] * 9)
    config = WorkerConfig(tmp_path, (), "cuda:0", None, 1, None)
    assert estimate.estimate_seconds(plan, config, workers) == seconds


def test_the_networks_part_is_that_of_a_full_batch(root, rows, tmp_path, monkeypatch):
    """One clip alone would be filled up with zeros, and cost as much as eight."""
    given = []

    class Networks:
        def __init__(self, *args):
            pass

        def size(self, segments):
            return 8

        def several(self, inputs, streams):
            given.append(sum(map(len, inputs)))

    monkeypatch.setattr("kdcache.extraction.features.Backbones", Networks)
    options = {"views": ["centre", "centre-flip"], "weights": {"i3d-rgb": "random:0"}, "batch": 8}
    kdcache.extract(rows, root, tmp_path / "out", ["i3d-rgb/mixed4a"], dry_run=True, **CALL, **options)
    assert given == [8, 8]


def test_a_plan_needs_no_weights(root, rows, tmp_path, no_weights):
    """The clips that are cached with random weights are not those of the weights that are missing."""
    streams = ["rgb", "i3d-rgb/mixed4a"]
    kdcache.extract(rows, root, tmp_path / "out", streams, {"i3d-rgb": "random:0"}, **CALL)
    report = kdcache.extract(rows, root, tmp_path / "out", streams, dry_run=True, **CALL)
    assert (report.planned, report.cached, report.seconds) == (6, 0, None)
    assert report.lacking == {"i3d-rgb/mixed4a": "rgb_imagenet.pt is not on this machine"}
    assert "Without its weights neither the time nor what is cached of it is known" in str(report)
    named = {"i3d-rgb": tmp_path / "none.pt"}
    report = kdcache.extract(rows, root, tmp_path / "out", streams, named, dry_run=True, **CALL)
    assert "none.pt: no such weights file" in report.lacking["i3d-rgb/mixed4a"]
    report = kdcache.extract(rows, root, tmp_path / "out", ["tsm/pool", "rgb"], dry_run=True, **CALL)
    assert "kdcache fit tsm" in report.lacking["tsm/pool"] or "is not on this machine" in report.lacking["tsm/pool"]


def test_workers_that_cores_and_memory_allow(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "cores", lambda: 8)
    for free, count in ((10 * WORKER_BYTES, 8), (3.5 * WORKER_BYTES, 3), (WORKER_BYTES / 2, 1), (None, 8)):
        monkeypatch.setattr(runtime, "free_memory", lambda free=free: free and int(free))
        assert automatic_workers("auto") == count
        assert automatic_workers(5) == 5
    monkeypatch.setattr(runtime, "free_memory", lambda: 5 * PROCESS_BYTES)
    assert workers_for("auto", tmp_path, "cpu") == 5
    (tmp_path / "shard-00000.h5").write_bytes(b"")
    with open(tmp_path / "shard-00000.h5", "r+b") as file:
        file.truncate(PROCESS_BYTES)  # what each process may hold
    assert workers_for("auto", tmp_path, "cpu") == 2
    assert workers_for(3, tmp_path / "none", "cpu") == 3
    for wrong in (0, "many", 1.5, True):
        with pytest.raises(OptionError, match="give a number from 1 on, or auto"):
            worker_count(wrong, 1)


def test_auto_extracts_in_as_many_processes(root, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 1)
    report = kdcache.extract(rows, root, tmp_path / "out", ["rgb"], workers="auto", **CALL)
    assert (report.extracted, report.workers) == (6, 1)


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_messages_name_what_helps_in_the_command_that_was_called(root, tmp_path):
    clips = tmp_path / "clips.csv"
    clips.write_text("source,label\na/0.mp4,0\nb/1.mp4,1\n")
    out = ("--root", root, "--out", tmp_path / "out")
    found = run("inspect", clips)
    assert "no shard (not an HDF5 file); name a shard or a folder" in found.output
    assert "--repair" not in found.output
    found = run("extract", "--dataset", "folder", "--for", "anticipation", *out)
    assert (
        "anticipation reads pairs of clips, which this manifest of folder has not: add --set observe=0.4."
        in found.output
    )
    found = run("extract", "--manifest", clips, "--for", "anticipation", *out)
    assert "the manifest has no column 'pair'" in found.output
    assert "--set" not in found.output
    found = run("extract", "--manifest", clips, "--stream", "rgb", "--workers", "some", *out)
    assert "'some' is no number of workers; give one from 1 on, or auto" in found.output
    found = run("extract", "--dataset", "folder", "--root", root, "--root", tmp_path, "--stream", "rgb")
    assert "folder lies below one root, and 2 were given: give --root once" in found.output
    found = run("manifest", "folder", "--root", root, "--root", root, "-o", tmp_path / "a.csv")
    assert "a data set lies below one root; give it once" in found.output
    found = run("extract", "--dataset", "folder", "--allow-absolute", *out)
    assert "--allow-absolute is for --manifest" in found.output


def test_a_manifest_without_split_says_what_will_happen(root, tmp_path, caplog):
    run("manifest", "folder", "--root", root, "-o", tmp_path / "clips.csv")
    assert "names no split: training will hold out a fifth of the clips for validation" in caplog.text
    caplog.clear()
    options = ("--set", "subject=(?P<subject>.)", "--set", "held_out=0,1")
    found = run("manifest", "folder", "--root", root, *options, "-o", tmp_path / "clips.csv")
    assert found.exit_code == 0
    assert "names no split" not in caplog.text


def test_several_roots_on_the_command_line(root, tmp_path, monkeypatch):
    (tmp_path / "clips.csv").write_text("source,label\n0.mp4,x\n1.mp4,y\n")
    call = ("extract", "--manifest", tmp_path / "clips.csv", "--stream", "rgb", "--out", tmp_path / "out")
    found = run(*call, "--root", root / "a", "--root", root / "b", "--workers", "auto")
    assert "2 clips: 0 cached already, 2 extracted" in found.output
    monkeypatch.setenv("KDCACHE_DATA", f"{root / 'a'}:{root / 'b'}")
    assert "2 clips: 2 cached already" in run(*call).output
    monkeypatch.delenv("KDCACHE_DATA")
    assert "Say where the sources are: --root FOLDER" in run(*call).output
    (tmp_path / "absolute.csv").write_text(f"source,label\n{root / 'a' / '0.mp4'},x\n")
    said = run("extract", "--manifest", tmp_path / "absolute.csv", "--stream", "rgb", "--out", tmp_path / "b").output
    assert "0.mp4 in" in said
    assert "is an absolute path, which --allow-absolute takes." in said
    assert math.isnan(kdcache.Cache(tmp_path / "out").clips["start_s"][0])
