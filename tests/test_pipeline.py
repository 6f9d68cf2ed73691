"""Extraction with decoding processes beside the one of the networks: the same arrays, nothing lost, nothing hangs."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.backbones.freeze import FrozenLayers
from kdcache.demo.scene import make_dataset
from kdcache.errors import DeviceError, OptionError, StoreError
from kdcache.extraction import local as local_module
from kdcache.extraction import pipeline as pipeline_module
from kdcache.extraction import run as run_module
from kdcache.extraction import shelf as shelf_module
from kdcache.extraction import slots as slots_module
from kdcache.extraction.device_process import DeviceProcess
from kdcache.extraction.pipeline import run_pipeline
from kdcache.extraction.plan import WorkUnit
from kdcache.extraction.worker import Computed, WorkerConfig
from kdcache.runtime import kept_threads, resolve_devices
from kdcache.store import load_places
from kdcache.store.failures import load_failures
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings
from kdcache.workers import Serial, StopFlag

FEATURE = "i3d-rgb/mixed4a"
STREAMS = ["rgb", FEATURE]
SMALL: dict[str, Any] = {"size": 32, "frames": 8, "short_side": 32, "weights": {"i3d-rgb": "random:0"}, "bar": False}
Digests = dict[str, set[tuple[str, str]]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Six short videos with two clips each."""
    folder = tmp_path_factory.mktemp("dataset")
    make_dataset(folder, clips_per_class=1)
    return folder


@pytest.fixture
def processes(monkeypatch) -> Iterator[None]:
    """Extraction takes decoding processes, on a CPU too; nothing of them may stay."""

    def run_units(units, config, workers, on_event, stop, cluster=None):
        if units:
            run_pipeline(units, config, workers, on_event, stop)

    real, made = slots_module._shared, []

    def shared(nbytes):
        memory = real(nbytes)
        made.append(memory.name)
        return memory

    monkeypatch.setattr(slots_module, "_shared", shared)
    monkeypatch.setattr(run_module, "run_units", run_units)
    yield
    assert not multiprocessing.active_children()
    assert not [t for t in threading.enumerate() if t.name.startswith("kdcache-")]
    assert not [name for name in made if (Path("/dev/shm") / name).exists()]


@pytest.fixture
def pipeline(processes, monkeypatch) -> None:
    """The same, but what decodes is this process: starting another takes seconds."""
    monkeypatch.setattr(pipeline_module, "Processes", lambda work, workers, on_death: Serial(work))


def extract(dataset: Path, out: Path, **options: Any) -> run_module.ExtractReport:
    options = {"streams": STREAMS, **SMALL, **options}
    return kdcache.extract(dataset / "clips.csv", root=dataset, out=out, **options)


def digests(out: Path, *streams: str) -> Digests:
    """Stream → key and digest of each array."""
    places = load_places(out, streams or STREAMS)
    return {stream: {(key, place[-1]) for key, place in found.items()} for stream, found in places.items()}


@pytest.fixture(scope="module")
def serial(dataset, tmp_path_factory) -> Digests:
    """What every run must come to."""
    out = tmp_path_factory.mktemp("serial")
    assert extract(dataset, out).extracted == 12
    return digests(out)


# ---------------------------------------------------------------------------
# whole runs
# ---------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_decoders_give_what_one_process_gives_though_one_is_killed(dataset, serial, tmp_path, processes, monkeypatch):
    real, killed = run_module.ExtractionRun._on_event, []

    def listen(self, event):
        if isinstance(event, Computed) and not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()
        real(self, event)

    monkeypatch.setattr(run_module.ExtractionRun, "_on_event", listen)
    report = extract(dataset, tmp_path, workers=2, batch=5)
    assert killed
    assert (report.extracted, report.failures, report.stopped) == (12, [], False)
    assert digests(tmp_path) == serial
    assert kdcache.Cache(tmp_path).verify().ok


def test_levels_and_views_are_put_together_alike(dataset, tmp_path, request):
    options = {"streams": [FEATURE], "levels": 2, "views": ["centre", "tl-flip"], "dtype": "float32", "part": (1, 3)}
    extract(dataset, tmp_path / "serial", **options)
    request.getfixturevalue("pipeline")
    extract(dataset, tmp_path / "pipeline", batch=3, **options)
    found = digests(tmp_path / "pipeline", FEATURE)
    assert found == digests(tmp_path / "serial", FEATURE)
    assert len(found[FEATURE]) == 4


def test_layers_of_one_network_come_from_one_pass(dataset, serial, tmp_path, pipeline, monkeypatch):
    """Where one of them is cached for some clips, these are computed up to the other alone."""
    both = [FEATURE, "i3d-rgb/mixed3c"]
    options = {"streams": both, "batch": 3}
    real, calls = FrozenLayers.at, list[tuple[tuple[str, ...], int]]()

    def at(self, layers, rows):
        calls.append((tuple(layers), len(rows)))
        return real(self, layers, rows)

    monkeypatch.setattr(FrozenLayers, "at", at)
    assert extract(dataset, tmp_path / "both", **options).extracted == 12
    assert calls == [(("mixed4a", "mixed3c"), 3)] * 4
    assert digests(tmp_path / "both", FEATURE)[FEATURE] == serial[FEATURE]
    extract(dataset, tmp_path / "alone", streams=both[1:])
    assert digests(tmp_path / "both", *both[1:]) == digests(tmp_path / "alone", *both[1:])

    extract(dataset, tmp_path / "rest", streams=[FEATURE], part=(1, 3))
    calls.clear()
    assert extract(dataset, tmp_path / "rest", **options).extracted == 12
    assert {layers for layers, _ in calls} == {("mixed3c",), ("mixed4a", "mixed3c")}
    assert digests(tmp_path / "rest", *both) == digests(tmp_path / "both", *both)


def test_without_room_in_shared_memory_clips_go_through_the_pipe(
    dataset, serial, tmp_path, pipeline, monkeypatch, caplog
):
    monkeypatch.setattr(slots_module, "_shared", lambda nbytes: None)
    assert extract(dataset, tmp_path).extracted == 12
    assert digests(tmp_path) == serial
    assert "docker run --shm-size" in caplog.text


def test_what_was_finished_before_a_stop_is_kept_and_the_rest_done_by_the_next_call(
    dataset, serial, tmp_path, pipeline, monkeypatch
):
    flags: list[StopFlag] = []
    monkeypatch.setattr(run_module, "StopFlag", lambda: flags.append(StopFlag()) or flags[-1])
    real, computed = run_module.ExtractionRun._on_event, []

    def listen(self, event):
        real(self, event)
        if isinstance(event, Computed):
            computed.append(event)
            flags[0].set()

    monkeypatch.setattr(run_module.ExtractionRun, "_on_event", listen)
    report = extract(dataset, tmp_path)
    assert report.stopped
    assert 1 <= report.extracted == len(computed) < 12
    assert all(found <= serial[stream] for stream, found in digests(tmp_path).items())
    again = extract(dataset, tmp_path)
    assert (again.cached, again.extracted) == (report.extracted, 12 - report.extracted)
    assert digests(tmp_path) == serial


# ---------------------------------------------------------------------------
# the device
# ---------------------------------------------------------------------------


def networks(monkeypatch, around: Callable[[Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]):
    """Every network is called by a function."""
    real = FrozenLayers.at

    def at(self, layers, rows):
        (layer,) = layers
        return [around(lambda rows: real(self, [layer], rows)[0], rows)]

    monkeypatch.setattr(FrozenLayers, "at", at)


def test_features_that_are_not_finite_are_the_failure_of_their_clip_alone(
    dataset, serial, tmp_path, pipeline, monkeypatch
):
    seen = []

    def third_is_broken(net, rows):
        found = net(rows).clone()
        if not seen:
            found[2, 0, 0, 0, 0] = float("nan")
            found[3, -1] = 1e6
        seen.append(len(rows))
        return found

    networks(monkeypatch, third_is_broken)
    report = extract(dataset, tmp_path, batch=5)
    assert seen == [5, 5, 5]
    failures = load_failures(tmp_path)
    assert (report.extracted, len(failures)) == (10, 2)
    assert {f.stage for f in failures} == {"backbone"}
    assert any("NaN or infinite" in f.reason for f in failures)
    assert any("reaches 1e+06, beyond float16" in f.reason for f in failures)
    assert all(found < serial[stream] for stream, found in digests(tmp_path).items())


def test_levels_that_do_not_fill_a_batch_begin_the_next(dataset, tmp_path, pipeline, monkeypatch):
    seen = []

    def counted(net, rows):
        seen.append(rows.clone())
        return net(rows)

    networks(monkeypatch, counted)
    assert extract(dataset, tmp_path, streams=[FEATURE], levels=10, batch=8).extracted == 12
    assert [len(rows) for rows in seen] == [8] * 15  # for 120 segments; filling up each two clips takes 18
    assert all((rows.flatten(1).sum(1) > 0).all() for rows in seen)


def test_a_batch_that_does_not_fit_is_halved_for_good(dataset, serial, tmp_path, pipeline, monkeypatch):
    seen = []

    def limited(net, rows):
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return net(rows)

    networks(monkeypatch, limited)
    assert extract(dataset, tmp_path, batch=5).extracted == 12
    assert digests(tmp_path) == serial
    assert seen[:2] == [5, 2]
    assert set(seen[1:]) == {2}


def test_a_broken_device_ends_the_run_and_no_clip_is_blamed(dataset, tmp_path, pipeline, monkeypatch):
    calls = []

    def breaks(net, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return net(rows)

    networks(monkeypatch, breaks)
    with pytest.raises(DeviceError, match="nvidia-smi"):
        extract(dataset, tmp_path, batch=2)
    assert load_failures(tmp_path) == []
    kept = digests(tmp_path)[FEATURE]
    assert len(kept) <= 4
    monkeypatch.undo()
    assert extract(dataset, tmp_path).cached == len(kept)


def test_a_shard_that_cannot_be_written_ends_the_run(dataset, tmp_path, pipeline, monkeypatch):
    def full(*args, **options):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(shelf_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(shelf_module, "commit_shard", full)
    with pytest.raises(StoreError, match="The disk is full"):
        extract(dataset, tmp_path)
    assert load_failures(tmp_path) == []


@pytest.mark.parametrize(("device", "name", "expected"), [("cuda:1", FEATURE, True), ("cuda:1", "rgb", False)])
def test_networks_on_a_gpu_are_fed_by_decoding_processes(device, name, expected, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(pipeline_module, "run_pipeline", lambda *args: taken.append(True))
    monkeypatch.setattr(local_module, "run_unit", lambda *args: taken.append(False))
    monkeypatch.setattr(local_module.ExtractionWork, "start", lambda *args: lambda *unit: taken.append(False))
    streams = resolve([name], StreamSettings(size=32, frames=8), {"i3d-rgb": "random:0"})
    config = WorkerConfig(tmp_path, tuple(streams), device, None, 1, None)
    local_module.run_units([WorkUnit((name,), ())], config, 1, taken.append, StopFlag())
    assert taken == [expected]


def test_several_devices_share_the_decoders(dataset, serial, tmp_path, processes, monkeypatch):
    """Each is driven by a process; here both compute on the CPU."""
    monkeypatch.setattr(run_module, "resolve_devices", lambda names: ["cpu", "cpu"])
    report = extract(dataset, tmp_path, workers=1, batch=2)
    assert (report.extracted, report.failures) == (12, [])
    assert digests(tmp_path) == serial
    assert len(report.shards) == 2  # of each device one


def test_a_device_whose_process_dies_ends_the_run(dataset, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(run_module, "resolve_devices", lambda names: ["cpu", "cpu"])
    real = DeviceProcess.put

    def kill(self, message):
        real(self, message)
        self._process.kill()

    monkeypatch.setattr(DeviceProcess, "put", kill)
    with pytest.raises(DeviceError, match="the process that drives it has died"):
        extract(dataset, tmp_path)
    assert load_failures(tmp_path) == []


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        (2, "auto", ["cuda:0", "cuda:1"]),
        (0, "auto", ["cpu"]),
        (2, "cuda", ["cuda:0"]),
        (2, "cuda:1, cuda:0", ["cuda:1", "cuda:0"]),
        (2, "cpu", ["cpu"]),
    ],
)
def test_devices_of_an_extraction(there, asked, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert resolve_devices(asked) == expected


@pytest.mark.parametrize(
    ("asked", "error"),
    [("cuda:0,cuda:0", OptionError), ("cpu,cuda:0", OptionError), ("cuda:2", DeviceError)],
)
def test_devices_that_cannot_be_had_together(asked, error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(error, match="device="):
        resolve_devices(asked)


def test_workers_without_networks_are_spread_over_the_devices(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(local_module, "run_unit", lambda unit, config, *rest: seen.append(config.device))
    config = WorkerConfig(tmp_path, (), "cuda:0,cuda:1", None, 1, None)
    with kept_threads():
        for worker in range(3):
            local_module.ExtractionWork(config).start(worker)(WorkUnit((), ()), seen.append, StopFlag())
    assert seen == ["cuda:0", "cuda:1", "cuda:0"]
