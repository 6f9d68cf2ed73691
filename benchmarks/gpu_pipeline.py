"""Extraction's pipeline around a simulated GPU: ``python benchmarks/gpu_pipeline.py [--write]``.

The simulated GPU sleeps for a known time a batch of 8 clips of I3D, in place of the network; two processes stand for
decoders, and hand over clips of 32 × 224 × 224 that they do not decode. Everything else is what extraction does: slots
of shared memory, batches, cast and check (by this CPU, which a GPU does by itself), shards on the disk.

Target: the device is busy ≥ 0.95 of the time between its first batch and the end of its last where decoding keeps up.
No figure says how fast a GPU is.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_pipeline_decoder import SHAPE, STREAM, SyntheticDecoding, clip, frames
from torch import Tensor

import common
from kdcache.extraction import worker as worker_module
from kdcache.extraction.decoding import Message, Prepared, input_bytes
from kdcache.extraction.features import Backbones
from kdcache.extraction.pipeline import drive
from kdcache.extraction.plan import WorkUnit
from kdcache.extraction.slots import SlotWriter, make_slots
from kdcache.extraction.worker import Done, Event, WorkerConfig, run_unit
from kdcache.runtime import kept_threads, limit_threads
from kdcache.store.writer import Record, commit_shard
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings
from kdcache.workers import Processes, StopFlag

BATCH, DECODERS = 8, 2


class SimulatedGpu(Backbones):
    """Networks that sleep."""

    def __init__(self, stream: BackboneStream, seconds: float) -> None:
        super().__init__([], "cpu", BATCH)
        assert stream.shape is not None
        self._seconds = seconds
        self._features = torch.randn(BATCH, *stream.shape[1:], generator=torch.Generator().manual_seed(0))
        self.asleep, self.spans = 0.0, list[tuple[float, float]]()

    def network(self, streams: Sequence[BackboneStream], part: int | None) -> Callable[[Tensor], list[Tensor]]:
        """One that sleeps."""
        return self._forward

    def _forward(self, rows: Tensor) -> list[Tensor]:
        begin = time.perf_counter()
        time.sleep(self._seconds)
        self.asleep += time.perf_counter() - begin
        return [self._features[: len(rows)]]

    def attempt(self, work: Callable[[Tensor], Any], rows: Tensor, name: str) -> Any:
        """The same, timed."""
        begin = time.perf_counter()
        found = super().attempt(work, rows, name)
        self.spans.append((begin, time.perf_counter()))
        return found

    @property
    def whole(self) -> float:
        """Seconds between the begin of the first batch and the end of the last."""
        return self.spans[-1][1] - self.spans[0][0]

    @property
    def computing(self) -> float:
        """Seconds of forwards, casts and checks."""
        return sum(end - begin for begin, end in self.spans)


def _config(out: Path) -> WorkerConfig:
    return WorkerConfig(out, tuple(resolve([STREAM], StreamSettings(), {"i3d-rgb": "random:0"})), "cpu", BATCH, 1, None)


def _stream(config: WorkerConfig) -> BackboneStream:
    (stream,) = config.streams
    assert isinstance(stream, BackboneStream)
    return stream


def _pipeline(clips: int, batch_s: float, clip_s: float) -> SimulatedGpu:
    """A run of the pipeline over so many clips."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        gpu = SimulatedGpu(_stream(config), batch_s)
        slots = make_slots(DECODERS, input_bytes(config.streams))
        assert slots is not None
        kept: list[str] = []

        def note(event: Event) -> None:
            if isinstance(event, Done):
                kept.extend(event.shard.clips)

        with slots:
            work = SyntheticDecoding(slots.handle, clip_s)
            drive(_units(clips), config, work, DECODERS, slots, lambda: gpu, note, StopFlag())
        assert len(kept) == clips
    return gpu


def _decoders_alone(clips: int, clip_s: float) -> float:
    """Clips a second that the decoding processes hand over where nobody computes anything."""
    with tempfile.TemporaryDirectory() as folder:
        slots = make_slots(DECODERS, input_bytes(_config(Path(folder)).streams))
    assert slots is not None
    times: list[float] = []

    def hear(message: Message) -> None:
        assert isinstance(message, Prepared)
        assert message.slot is not None
        slots.release(message.slot)
        times.append(time.perf_counter())

    with slots:
        work = SyntheticDecoding(slots.handle, clip_s)
        Processes(work, DECODERS, lambda *death: []).run(_units(clips), hear, StopFlag())
    return (clips - BATCH) / (times[-1] - times[BATCH - 1])


def _units(clips: int) -> list[range]:
    return [range(n, n + BATCH) for n in range(0, clips, BATCH)]


def _one_process(clips: int, batch_s: float) -> SimulatedGpu:
    """The same clips by one process that does one thing after the other, though it decodes in a thread."""
    pixels, real = frames(), worker_module.prepared

    def ready(*_: Any) -> Iterator[worker_module.ClipInputs]:
        for number in range(clips):
            made = clip(number)
            made.inputs = {STREAM: pixels.copy()}
            yield made

    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        gpu = SimulatedGpu(_stream(config), batch_s)
        worker_module.prepared = ready  # type: ignore[assignment]
        try:
            run_unit(WorkUnit((STREAM,), ()), config, gpu, lambda event: None, StopFlag())
        finally:
            worker_module.prepared = real
    return gpu


def _costs() -> dict[str, float]:
    """Milliseconds a clip of what is done beside the network, each alone on one core."""
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        stream = _stream(config)
        assert stream.shape is not None
        slots = make_slots(1, input_bytes(config.streams))
        assert slots is not None
        with slots:
            writer, pixels = SlotWriter(slots.handle, 0), frames()
            features = torch.randn(1, *stream.shape[1:])
            batch = torch.empty(BATCH, *SHAPE[1:], dtype=torch.uint8)
            half = features.half().numpy()
            clips = [clip(number) for number in range(64)]
            records = [Record(c.task.row, c.origin, c.task.keys, c.frames, {STREAM: half}) for c in clips]

            def to_slot() -> tuple[int, Any]:
                put = writer.put({STREAM: pixels}, StopFlag())
                assert put is not None
                slots.release(put[0])
                return put

            slot, places = to_slot()

            def cast_and_check() -> None:
                features.flatten(1).abs().amax(1)
                features.half()

            runs = {
                "copy into a slot (decoder)": to_slot,
                "copy out of a slot": lambda: batch[:1].copy_(torch.from_numpy(slots.array(slot, places[STREAM]))),
                "cast and check (a GPU does it itself)": cast_and_check,
                "copy into the clip": half.copy,
                "commit (in its thread)": lambda: commit_shard(folder, records, {STREAM: stream.recipe}),
            }
            taken = common.compare(runs, repeat=9)
        taken["commit (in its thread)"] /= len(records)
    return {name: 1000 * seconds for name, seconds in taken.items()}


def measure() -> Iterator[tuple[str, Any]]:
    """All figures."""
    with kept_threads():
        limit_threads(1)
        yield "ms a clip", _costs()
        for batch_s in (0.2, 0.1):
            gpu, alone = _pipeline(240, batch_s, 0.0), _one_process(80, batch_s)
            yield (
                f"{1000 * batch_s:.0f} ms a batch of {BATCH}, decoding keeps up",
                {
                    "clips/s": 240 / gpu.whole,
                    "busy (network, cast, check)": gpu.computing / gpu.whole,
                    "busy (network alone)": gpu.asleep / gpu.whole,
                    "target": 0.95,
                    "busy in one process (network alone)": alone.asleep / alone.whole,
                },
            )
        slow = 0.05
        alone_s, gpu = _decoders_alone(120, slow), _pipeline(120, 0.1, slow)
        rate = (120 - BATCH) / (gpu.spans[-1][0] - gpu.spans[0][0])  # the first batch begins when it was decoded
        yield (
            f"100 ms a batch of {BATCH}, {DECODERS} decoders of {1000 * slow:.0f} ms a clip",
            {
                "clips/s": rate,
                "of what the decoders hand over by themselves": rate / alone_s,
                "busy (network alone)": gpu.asleep / gpu.whole,
            },
        )


if __name__ == "__main__":
    common.main("gpu_pipeline", measure, __doc__ or "")
