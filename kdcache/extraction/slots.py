"""Shared memory through which decoding processes hand clips to the process that drives a GPU.

Each worker has a few slots of its own, so nothing is locked and a worker that is killed blocks nobody: it fills a free
slot and says so through its pipe; whoever has copied what is in it makes it free again.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from kdcache.log import logger
from kdcache.text import size
from kdcache.workers import StopFlag

EACH = 3  # slots of a worker: one is filled, one waits, one is copied
PAUSE_S = 0.001  # between looks for a free slot
PARENT_LOOKS = 200  # looks between those for the parent process
PAGE = 4096
FREE, FILLED, RECEIVED = 0, 1, 2


class SlotPlace(NamedTuple):
    """Where an array lies in a slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Of the array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class SlotsHandle:
    """What a worker needs to find its slots."""

    name: str
    nbytes: int
    each: int
    total: int

    @property
    def head(self) -> int:
        """Bytes before the first slot: the state of each."""
        return _pages(self.total)

    def array(self, memory: NDArray[np.uint8], slot: int, place: SlotPlace) -> NDArray[Any]:
        """An array in a slot, not copied."""
        begin = self.head + slot * self.nbytes + place.offset
        return memory[begin : begin + place.nbytes].view(place.dtype).reshape(place.shape)

    def open(self) -> Slots:
        """The slots in another process than the one that made them."""
        return Slots(self, SharedMemory(self.name))


class Slots:
    """The slots of all workers, as a receiving process sees them; to be closed by the one that made them.

    Args:
        handle: as ``make_slots`` chose it.
        memory: of them all.
    """

    def __init__(self, handle: SlotsHandle, memory: SharedMemory) -> None:
        self.handle, self._memory = handle, memory
        self.bytes: NDArray[np.uint8] = np.ndarray(memory.size, np.uint8, memory.buf)
        """All of it; a GPU's driver may pin it."""

    def receive(self, slot: int) -> None:
        """A worker said that it has filled a slot: should it die now, the slot is not its successor's."""
        self.bytes[slot] = RECEIVED

    def release(self, slot: int) -> None:
        """What is in a slot was copied."""
        self.bytes[slot] = FREE

    def array(self, slot: int, place: SlotPlace) -> NDArray[Any]:
        """An array in a slot, not copied."""
        return self.handle.array(self.bytes, slot, place)

    def close(self) -> None:
        """Give the memory back."""
        self.bytes = np.empty(0, np.uint8)  # a mapping cannot be closed while an array shows it
        self._memory.close()
        self._memory.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_slots(workers: int, nbytes: int) -> Slots | None:
    """Slots of so many bytes for so many workers; ``None``, and a warning, where there is no room for one a worker."""
    nbytes = _pages(max(1, nbytes))
    for each in range(EACH, 0, -1):
        total = workers * each
        memory = _shared(_pages(total) + total * nbytes)
        if memory is not None:
            slots = Slots(SlotsHandle(memory.name, nbytes, each, total), memory)
            slots.bytes[:total] = FREE
            return slots
    logger.warning(
        "Shared memory has no room for %s: clips go through pipes, which is slower. In a container start it with more "
        "(docker run --shm-size=8g), or take fewer --workers.",
        size(workers * nbytes),
    )
    return None


class SlotWriter:
    """A worker's side of its slots.

    Args:
        handle: of all slots.
        worker: number of the worker; one that has died left its number to this one.
    """

    def __init__(self, handle: SlotsHandle, worker: int) -> None:
        self._handle = handle
        self._memory = SharedMemory(handle.name)
        self._bytes: NDArray[np.uint8] = np.ndarray(self._memory.size, np.uint8, self._memory.buf)
        self._mine = range(worker * handle.each, (worker + 1) * handle.each)
        for slot in self._mine:
            if self._bytes[slot] == FILLED:  # of a worker that died before it could say so
                self._bytes[slot] = FREE

    def put(self, arrays: Mapping[str, NDArray[Any]], stop: StopFlag) -> tuple[int, dict[str, SlotPlace]] | None:
        """Copy arrays into a free slot, as soon as there is one.

        Returns:
            The slot and where each lies in it; ``None`` where ``stop`` was set first.

        Raises:
            SystemExit: the receiving process is dead.
        """
        slot = self._free(stop)
        if slot is None:
            return None
        self._bytes[slot] = FILLED
        places, offset = {}, 0
        for name, array in arrays.items():
            places[name] = SlotPlace(offset, array.shape, array.dtype.str)
            np.copyto(self._handle.array(self._bytes, slot, places[name]), array)
            offset += _aligned(array.nbytes)
        return slot, places

    def fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Whether a slot holds so much."""
        return sum(_aligned(array.nbytes) for array in arrays.values()) <= self._handle.nbytes

    def __del__(self) -> None:
        self._bytes = np.empty(0, np.uint8)  # a mapping cannot be closed while an array shows it

    def _free(self, stop: StopFlag) -> int | None:
        parent, looks = multiprocessing.parent_process(), 0
        while not stop.is_set():
            for slot in self._mine:
                if self._bytes[slot] == FREE:
                    return slot
            looks += 1
            if looks % PARENT_LOOKS == 0 and parent is not None and not parent.is_alive():
                raise SystemExit(1)
            time.sleep(PAUSE_S)
        return None


def _shared(nbytes: int) -> SharedMemory | None:
    """Shared memory that is there: a page that cannot be had when it is first written kills the process."""
    try:
        memory = SharedMemory(create=True, size=nbytes)
    except OSError:
        return None
    file = Path("/dev/shm") / memory.name
    if hasattr(os, "posix_fallocate") and file.exists():
        try:
            number = os.open(file, os.O_RDWR)
            try:
                os.posix_fallocate(number, 0, nbytes)
            finally:
                os.close(number)
        except OSError:
            memory.close()
            memory.unlink()
            return None
    return memory


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE
