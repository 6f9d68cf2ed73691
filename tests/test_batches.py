"""Batches across clips, and the order in which a GPU copies, computes and lets go: with functions of CUDA replaced."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.backbones.weights import Choice
from kdcache.errors import DeviceError
from kdcache.extraction import device_loop
from kdcache.extraction.batches import BUFFERS, Batch, Batches, GivenUp, Waiting
from kdcache.extraction.plan import Task
from kdcache.extraction.slots import make_slots
from kdcache.extraction.worker import ClipInputs
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

NAME = "i3d-rgb/mixed4a"


@pytest.fixture(scope="module")
def stream() -> BackboneStream:
    (only,) = resolve([NAME], StreamSettings(size=32, frames=8, dtype="float32"), {"i3d-rgb": "random:0"})
    assert isinstance(only, BackboneStream)
    return replace(only)


@dataclass
class Sums:
    """Networks whose every feature is the first value of its segment; those of a part add 100 to its number."""

    stream: BackboneStream
    device: str = "cpu"
    most: int | None = None

    def network(self, streams: Any, part: int | None) -> Any:
        added = 0 if part is None else 100 * (part + 1)
        return lambda rows: [
            (rows.flatten(1)[:, :1].float() + added).expand(-1, 480 * 8).reshape(-1, 480, 2, 2, 2) for _ in streams
        ]

    def size(self, segments: Any) -> int:
        return 4

    def attempt(self, work: Any, rows: torch.Tensor, name: str) -> Any:
        return work(rows)


def waiting(number: int, segments: int, copied: Any = lambda: None) -> Waiting:
    """A clip, the first values of whose segments are 10 × number, 10 × number + 1, …"""
    values = np.zeros((segments, 8, 32, 32, 3), np.uint8)
    values[:, 0, 0, 0, 0] = 10 * number + np.arange(segments)
    task = Task({"clip_id": f"c{number}", "source": "s"}, "/s", "f", 0.0, 1.0, {NAME: f"{number:032x}"})
    return Waiting(ClipInputs(task, {}), (NAME,), {NAME: values}, copied)


def values(clip: Waiting) -> list[float]:
    array = clip.clip.arrays[NAME]
    assert isinstance(array, np.ndarray)
    return array.reshape(len(array), -1)[:, 0].tolist()


def test_each_clip_gets_its_own_rows_however_batches_are_cut(stream):
    batches = Batches([stream], Sums(stream), lambda: False)
    counts = [1, 6, 2, 9, 1, 3]
    done = list(batches.gather(batches.compute(batches.fill(waiting(n, count) for n, count in enumerate(counts)))))
    assert [clip.clip.task.clip_id for clip in done] == [f"c{n}" for n in range(6)]
    assert [values(clip) for clip in done] == [
        [10.0 * number + segment for segment in range(count)] for number, count in enumerate(counts)
    ]


def test_clips_of_cross_fitted_weights_are_computed_by_the_network_of_their_part(stream, monkeypatch):
    crossed = replace(stream, weights=Choice(seed=0))
    monkeypatch.setattr(BackboneStream, "part_of", lambda self, clip_id: {"c0": None, "c1": 0}.get(clip_id, 1))
    batches = Batches([crossed], Sums(crossed), lambda: False)
    done = list(batches.gather(batches.compute(batches.fill(waiting(n, 2) for n in range(5)))))
    found = {clip.clip.task.clip_id: values(clip)[0] for clip in done}
    assert found == {"c0": 0.0, "c1": 110.0, "c2": 220.0, "c3": 230.0, "c4": 240.0}


def test_nothing_waits_for_a_buffer_once_the_run_has_ended(stream):
    ended: list[bool] = []
    batches = Batches([stream], Sums(stream), lambda: bool(ended))
    filled = batches.fill(waiting(n, 4) for n in range(9))
    assert len([next(filled) for _ in range(BUFFERS)]) == BUFFERS  # nobody computes them
    ended.append(True)
    with pytest.raises(GivenUp):
        next(filled)


def test_what_is_copied_from_is_let_go_and_what_is_copied_is_computed_when_the_copy_is_done(stream, monkeypatch):
    log: list[str] = []

    @contextmanager
    def on(stream):
        assert stream is copies
        log.append("copy")
        yield

    copies = SimpleNamespace(synchronize=lambda: log.append("done"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    batches = Batches([stream], Sums(stream), lambda: False)
    batches._cuda, batches._copies = True, copies
    for item in batches.fill(waiting(n, 6, lambda: log.append("let go")) for n in range(2)):
        assert isinstance(item, Batch)
        log.append("computed")
    assert "let go" in log
    for position, entry in enumerate(log):
        if entry in ("let go", "computed"):
            before = [e for e in log[:position] if e in ("copy", "done")]
            assert before[-1] == "done"
    assert log.count("computed") == 3


@pytest.mark.parametrize("code", [0, 712])
def test_slots_are_page_locked_and_unlocked(code, monkeypatch, caplog):
    calls: list[tuple[Any, ...]] = []
    own = threading.get_ident()

    def register(address, nbytes, flags):
        assert threading.get_ident() != own  # there, the next launch of a kernel would be told of the failure
        calls.append(("lock", address, nbytes))
        return code

    cuda = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda a: calls.append(("unlock", a)))
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with make_slots(1, 100) as slots:
        address, nbytes = slots.bytes.ctypes.data, slots.bytes.nbytes
        with device_loop._pinned(slots, "cuda:1"):
            assert calls == [("lock", address, nbytes)]
    assert calls[1:] == ([("unlock", address)] if code == 0 else [])
    assert ("cuda:1 cannot lock" in caplog.text) == (code != 0)


def broken_from(call: int) -> Any:
    """In place of a context manager of CUDA: the device is broken from that call on."""
    calls: list[int] = []

    def on(_: Any) -> Any:
        calls.append(1)
        if len(calls) >= call:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return nullcontext()

    return on


def test_a_device_that_breaks_is_named_though_its_memory_cannot_be_unlocked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0))
    monkeypatch.setattr(torch.cuda, "device", broken_from(2))
    with make_slots(1, 100) as slots, pytest.raises(DeviceError, match="the error of the run"):
        with device_loop._pinned(slots, "cuda:1"):
            raise DeviceError("the error of the run")


@pytest.mark.parametrize("segments", [4, 2], ids=["copied", "filled up"])
def test_a_device_that_is_seen_to_be_broken_by_a_copy_ends_the_run_with_a_sentence(stream, segments, monkeypatch):
    batches = Batches([stream], Sums(stream), lambda: False)
    batches._cuda, batches._copies = True, SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", broken_from(2 if segments == 4 else 3))  # the first is for the buffer
    with pytest.raises(DeviceError, match=r"failed \(CUDA error: an illegal memory access"):
        list(batches.fill([waiting(1, segments)]))
