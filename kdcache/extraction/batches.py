"""Full batches for frozen networks out of clips of any number of segments, and clips out of what the networks give.

Three generators, each meant for a thread of its own: ``fill`` copies segments to the device, ``compute`` runs networks
on full batches, ``gather`` waits for the device and puts clips together. What of a clip does not fit into a batch
begins the next one; only the last of all is filled up with zeros.
"""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache.device_errors import device_errors
from kdcache.errors import ClipError
from kdcache.extraction.features import REMEDY, Compute, check_shape, computed_dtype, range_error, stored
from kdcache.extraction.worker import ClipInputs
from kdcache.streams.backbone import BackboneStream

BUFFERS = 3  # of each network: one is filled, one is computed on, one waits for either
WAIT_S = 0.05  # between looks whether the run was given up

Key = tuple[str, int | None]
"""The names of streams of one network, and the part of cross-fitted weights."""


class Networks(Protocol):
    """What computes batches, see ``kdcache.extraction.features.Backbones``."""

    device: str
    most: int | None
    """Segments that fit into memory at once, where it was exhausted before."""

    def network(self, streams: Sequence[BackboneStream], part: int | None) -> Compute:
        """The network of which streams are layers."""
        ...

    def size(self, segments: NDArray[Any]) -> int:
        """How many segments such as these make a batch."""
        ...

    def attempt(
        self, work: Callable[[Tensor], list[tuple[Tensor, Tensor]]], rows: Tensor, name: str
    ) -> list[tuple[Tensor, Tensor]] | None:
        """What a function gives for rows, or None where only fewer fit into memory: then ``most`` says how many."""
        ...


class GivenUp(Exception):
    """The run has ended elsewhere."""


@dataclass
class Waiting:
    """A clip on its way through the networks."""

    clip: ClipInputs
    streams: tuple[str, ...]
    """Of its unit."""
    inputs: Mapping[str, NDArray[Any]]
    """First stream of a network → its input, [segments, …]; empty when all is on the device."""
    copied: Callable[[], None] = lambda: None
    """Called then."""
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Stream → what its network gave, [segments, …], as it is stored (float32 where that is quantised)."""
    peaks: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Stream → the largest magnitude of each segment, NaN where one is NaN."""
    left: int = 0
    """Segments of all networks that are not computed yet."""
    error: ClipError | None = None


class Rows(NamedTuple):
    """Segments of a clip in a batch."""

    waiting: Waiting
    segments: int
    """Of the whole clip."""
    first: int
    """Of those here …"""
    row: int
    """… and where it lies in the batch."""
    length: int


@dataclass
class Batch:
    """Segments of several clips for one network, on the device."""

    key: Key
    streams: Sequence[BackboneStream]
    rows: Tensor
    """[size, …]."""
    parts: list[Rows] = field(default_factory=list)
    filled: int = 0


class Results(NamedTuple):
    """What the network of a batch gave, perhaps still being computed."""

    batch: Batch
    pieces: list[list[tuple[Tensor, Tensor]]]
    """Of some rows after the other, for each stream on the host its values, [rows, …], and their peaks, [rows]."""
    ready: Callable[[], None]
    """Returns when they are there."""


class Batches:
    """The networks of one device and what waits for them.

    Args:
        streams: of the run that have networks.
        nets: the networks.
        ended: whether the run has ended elsewhere, so that nothing is waited for.
    """

    def __init__(self, streams: Iterable[BackboneStream], nets: Networks, ended: Callable[[], bool]) -> None:
        self._streams = {stream.name: stream for stream in streams}
        self._nets, self._ended = nets, ended
        self._device = torch.device(nets.device)
        self._cuda = self._device.type == "cuda"
        self._copies: Any = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._open: dict[Key, Batch] = {}
        self._free: dict[Key, queue.SimpleQueue[Tensor]] = {}
        self._buffers: Counter[Key] = Counter()

    def fill(self, clips: Iterable[Waiting]) -> Iterator[Batch | Waiting]:
        """Copy clips into batches. Yields batches that are full, and clips that need no network."""
        for waiting in clips:
            waiting.left = sum(map(len, waiting.inputs.values()))
            if not waiting.left:
                yield waiting
            for name, segments in waiting.inputs.items():
                position = 0
                while position < len(segments):
                    batch = self._batch(name, waiting, segments)
                    count = min(len(segments) - position, len(batch.rows) - batch.filled)
                    with device_errors(self._device, "A clip", REMEDY), self._copying():
                        source = torch.from_numpy(segments[position : position + count])
                        batch.rows[batch.filled : batch.filled + count].copy_(source, non_blocking=True)
                    batch.parts.append(Rows(waiting, len(segments), position, batch.filled, count))
                    batch.filled += count
                    position += count
                    if batch.filled == len(batch.rows):
                        yield self._closed(batch)
            self._copied()
            waiting.inputs = {}
            waiting.copied()
        for batch in list(self._open.values()):
            with device_errors(self._device, "A batch", REMEDY), self._copying():
                batch.rows[batch.filled :] = 0
            yield self._closed(batch)

    def compute(self, batches: Iterable[Batch | Waiting]) -> Iterator[Results | Waiting]:
        """Run networks on full batches, and cast and check what they give where it is. Yields before it is there."""
        for batch in batches:
            if isinstance(batch, Waiting):
                yield batch
                continue
            network = self._nets.network(batch.streams, batch.key[1])
            dtypes = [getattr(torch, str(computed_dtype(stream))) for stream in batch.streams]

            def work(
                rows: Tensor, network: Compute = network, dtypes: list[torch.dtype] = dtypes
            ) -> list[tuple[Tensor, Tensor]]:
                with self._current():
                    found = list[tuple[Tensor, Tensor]]()
                    for values, dtype in zip(network(rows), dtypes, strict=True):
                        peaks = values.flatten(1).abs().amax(1)  # NaN where one is NaN
                        found.append((self._to_host(values.to(dtype)), self._to_host(peaks)))
                    return found

            pieces, done = list[list[tuple[Tensor, Tensor]]](), 0
            while done < batch.filled:
                count = min(len(batch.rows), self._nets.most or len(batch.rows))
                first = min(done, len(batch.rows) - count)
                found = self._nets.attempt(work, batch.rows[first : first + count], batch.key[0])
                if found is not None:
                    pieces.append([(values[done - first :], peaks[done - first :]) for values, peaks in found])
                    done = first + count
            yield Results(batch, pieces, self._mark())

    def gather(self, results: Iterable[Results | Waiting]) -> Iterator[Waiting]:
        """Wait for the device and put clips together. Yields those that are complete, or why one has no features."""
        for result in results:
            if isinstance(result, Waiting):
                yield result
                continue
            batch = result.batch
            with device_errors(self._device, f"{batch.key[0]}: a batch", REMEDY):
                result.ready()
            self._free[batch.key].put(batch.rows)
            outputs = [
                (stream.name, _joined([values for values, _ in its]), _joined([peaks for _, peaks in its]))
                for stream, its in zip(batch.streams, zip(*result.pieces, strict=True), strict=True)
            ]
            for waiting, segments, first, row, length in batch.parts:
                for name, values, peaks in outputs:
                    if name not in waiting.results:
                        waiting.results[name] = np.empty((segments, *values.shape[1:]), values.dtype)
                        waiting.peaks[name] = np.empty(segments, np.float32)
                    waiting.results[name][first : first + length] = values[row : row + length]
                    waiting.peaks[name][first : first + length] = peaks[row : row + length]
                waiting.left -= length
                if not waiting.left:
                    self._finish(waiting)
                    yield waiting

    def _finish(self, waiting: Waiting) -> None:
        for name, found in waiting.results.items():
            stream = self._streams[name]
            array = stream.assemble(found)
            check_shape(array, stream)
            error = range_error(float(waiting.peaks[name].max()), stream)
            if error is None:
                waiting.clip.arrays[name] = stored(array, stream)
            else:
                waiting.error = error
        waiting.results = {}

    def _batch(self, name: str, waiting: Waiting, segments: NDArray[Any]) -> Batch:
        """The batch that is being filled for a network of a clip, of which a stream is the first."""
        first = self._streams[name]
        streams = [s for s in map(self._streams.get, waiting.streams) if s is not None and s.network == first.network]
        key = (" and ".join(stream.name for stream in streams), first.part_of(waiting.clip.task.clip_id))
        if key not in self._open:
            self._open[key] = Batch(key, streams, self._buffer(key, segments))
        return self._open[key]

    def _buffer(self, key: Key, segments: NDArray[Any]) -> Tensor:
        if self._buffers[key] < BUFFERS:
            self._buffers[key] += 1
            self._free.setdefault(key, queue.SimpleQueue())
            dtype = torch.from_numpy(segments[:0]).dtype
            with device_errors(self._device, f"{key[0]}: a batch of its inputs", REMEDY), self._copying():
                return torch.empty((self._nets.size(segments), *segments.shape[1:]), dtype=dtype, device=self._device)
        while not self._ended():
            with suppress(queue.Empty):
                return self._free[key].get(timeout=WAIT_S)
        raise GivenUp

    def _closed(self, batch: Batch) -> Batch:
        self._copied()
        return self._open.pop(batch.key)

    def _current(self) -> AbstractContextManager[Any]:
        """Inside, the device is the current one: page-locked memory would start CUDA on another, too."""
        return torch.cuda.device(self._device) if self._cuda else nullcontext()

    def _copying(self) -> AbstractContextManager[Any]:
        """Inside, memory is taken and copied on a CUDA stream beside that of the networks."""
        return torch.cuda.stream(self._copies) if self._cuda else nullcontext()

    def _copied(self) -> None:
        if self._cuda:
            with device_errors(self._device, "A clip", REMEDY):
                self._copies.synchronize()

    def _to_host(self, values: Tensor) -> Tensor:
        if not self._cuda:
            return values
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

    def _mark(self) -> Callable[[], None]:
        """A function that returns when all that was computed so far is on the host."""
        if not self._cuda:
            return lambda: None
        with device_errors(self._device, "A batch", REMEDY):
            event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # or waiting takes a core
            event.record(torch.cuda.current_stream(self._device))
        wait: Callable[[], None] = event.synchronize
        return wait


def _joined(pieces: Sequence[Tensor]) -> NDArray[Any]:
    return pieces[0].numpy() if len(pieces) == 1 else np.concatenate([piece.numpy() for piece in pieces])
