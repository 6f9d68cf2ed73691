"""Slots of shared memory: what is written is read, nobody takes what another still needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from kdcache.extraction import slots as module
from kdcache.extraction.slots import EACH, FREE, RECEIVED, Slots, SlotWriter, make_slots
from kdcache.workers import StopFlag

ARRAYS = {"a": np.arange(30, dtype=np.uint8).reshape(5, 6), "b": np.linspace(0, 1, 7, dtype=np.float32)}


@pytest.fixture
def slots() -> Iterator[Slots]:
    with make_slots(2, 5000) as found:
        yield found


def put(writer: SlotWriter) -> tuple[int, dict[str, module.SlotPlace]]:
    found = writer.put(ARRAYS, StopFlag())
    assert found is not None
    return found


def test_arrays_are_read_as_they_were_written(slots):
    slot, places = put(SlotWriter(slots.handle, 1))
    assert slot in range(EACH, 2 * EACH)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(slots.array(slot, places[name]), array)
        assert slots.array(slot, places[name]).dtype == array.dtype


def test_a_slot_is_taken_again_when_it_is_released_and_not_before(slots):
    writer = SlotWriter(slots.handle, 0)
    taken = [put(writer)[0] for _ in range(EACH)]
    assert taken == list(range(EACH))
    for slot in taken:
        slots.receive(slot)
    stop = StopFlag()
    timer = threading.Timer(0.05, stop.set)
    timer.start()
    assert writer.put(ARRAYS, stop) is None
    timer.join()
    slots.release(1)
    assert put(writer)[0] == 1


def test_of_a_dead_worker_its_successor_gets_the_slots_that_nobody_was_told_of(slots):
    writer = SlotWriter(slots.handle, 0)
    for _ in range(EACH):
        put(writer)
    slots.receive(0)
    successor = SlotWriter(slots.handle, 0)
    assert slots.bytes[0] == RECEIVED
    assert [slots.bytes[slot] for slot in range(1, EACH)] == [FREE] * (EACH - 1)
    assert put(successor)[0] == 1


def test_a_clip_that_is_larger_than_a_slot_is_known(slots):
    writer = SlotWriter(slots.handle, 0)
    assert writer.fits({"a": np.zeros(8192, np.uint8)})
    assert not writer.fits({"a": np.zeros(8192, np.uint8), "b": np.zeros(1, np.uint8)})


def test_fewer_slots_where_shared_memory_is_small(monkeypatch, caplog):
    real = module._shared
    monkeypatch.setattr(module, "_shared", lambda nbytes: real(nbytes) if nbytes < 4 * 4096 else None)
    with make_slots(2, 4096) as found:
        assert found.handle.each == 1
    assert make_slots(4, 4096) is None
    assert "no room for 16.4 kB" in caplog.text
