"""Batches on their way to a GPU, and threads that make them."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from memory_stream import MemoryStream

from kdcache.data import loader
from kdcache.data.copies import one_ahead
from kdcache.data.ondemand.stream import OnDemand
from kdcache.errors import OptionError, SourceError
from kdcache.methods.contract import BatchSource
from kdcache.runtime import decode_threads

CPU = torch.device("cpu")


class Recorder:
    """In the place of a CUDA stream: notes what is done in which order."""

    def __init__(self, notes):
        self.notes, self.inside, self.marks = notes, False, 0

    @contextmanager
    def issue(self):
        self.inside = True
        yield
        self.inside = False

    def mark(self):
        self.marks += 1
        return self.marks

    def wait(self, mark, batch):
        assert not self.inside
        self.notes.append(f"wait {mark}")


def test_each_batch_is_queued_before_the_one_before_it_is_handed_out():
    notes: list[str] = []
    copies = Recorder(notes)

    def made():
        for number in range(3):
            assert copies.inside
            notes.append(f"copy {number}")
            yield {"x": torch.tensor(number)}

    for batch in one_ahead(made(), copies):
        notes.append(f"compute {int(batch['x'])}")
    assert notes == [
        "copy 0", "copy 1", "wait 1", "compute 0", "copy 2", "wait 2", "compute 1", "wait 3", "compute 2",
    ]  # fmt: skip


def test_what_breaks_while_copying_breaks_the_loop():
    def made():
        yield {"x": torch.zeros(1)}
        raise SourceError("a.mp4 is cut off")

    with pytest.raises(SourceError, match=r"a\.mp4"):
        list(one_ahead(made(), Recorder([])))


class Noise(OnDemand):
    """Arrays that say which row, view and key they are of, made by threads that wait for each other."""

    def __init__(self, workers=1, broken=()):
        super().__init__((3,), 5, 0, CPU)
        self.workers, self.broken = workers, broken
        self.barrier = threading.Barrier(workers)
        self.seen: set[str] = set()

    def view(self, row, view, key):
        self.barrier.wait(10)  # all of them work at once, or none gets past
        self.seen.add(threading.current_thread().name)
        if row in self.broken:
            raise SourceError(f"row {row} is cut off")
        return self.random(key, view).normal(size=3).astype(np.float32) + row


def test_threads_make_the_batch_that_one_makes():
    rows, views, keys = torch.arange(12), torch.arange(12) % 5, torch.arange(12) + 7
    alone, several = Noise(), Noise(4)
    assert torch.equal(alone.fetch(rows, views, keys), several.fetch(rows, views, keys))
    assert len(several.seen) == 4
    assert alone.seen == {threading.current_thread().name}
    with pytest.raises(SourceError, match="row 2"):
        Noise(2, broken=(2, 3)).fetch(rows, views, keys)


def test_one_thread_beside_a_cpu_that_computes_and_one_a_core_beside_a_gpu(monkeypatch):
    monkeypatch.setattr("kdcache.runtime.cores", lambda: 12)
    assert decode_threads("auto", CPU) == 1
    assert decode_threads("auto", torch.device("cuda")) == 12
    assert decode_threads(3, CPU) == 3
    with pytest.raises(OptionError, match="workers is 0"):
        decode_threads(0, CPU)


@pytest.mark.gpu
def test_streamed_batches_are_those_that_are_held():
    """Copied on another stream while this one computes: a batch that came too early would hold other numbers."""
    device, values = torch.device("cuda"), torch.randn(64, 1, 1024, 64).pin_memory()

    class Streamed(MemoryStream):
        resident = False

        def fetch(self, rows, views, keys):
            return values[rows, views].pin_memory()

        def to_device(self, fetched):
            return fetched.to(device, non_blocking=True).float()

    source = BatchSource({"x": (Streamed(values), torch.arange(64))}, {"y": torch.arange(64)})
    plan = loader.shuffled(source, 8, 1, np.random.default_rng(0))
    busy = torch.randn(2048, 2048, device=device)
    for (index, _), batch in zip(plan, loader.feed(source, plan, device), strict=True):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        assert torch.equal(batch["x"].cpu(), values[index, 0])
        assert torch.equal(batch["y"].cpu(), index)
