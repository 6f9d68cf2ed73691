"""What decodes in ``gpu_pipeline.py``: processes that hand over the same clip again and again. Imported by them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.extraction.decoding import Message, Prepared
from kdcache.extraction.plan import Task
from kdcache.extraction.slots import SlotsHandle, SlotWriter
from kdcache.extraction.worker import ClipInputs
from kdcache.workers import StopFlag

STREAM = "i3d-rgb/mixed4a"
SHAPE = (1, 32, 224, 224, 3)


@dataclass(frozen=True)
class SyntheticDecoding:
    """Each unit is a range of numbers of clips."""

    slots: SlotsHandle
    seconds: float
    """That decoding a clip takes."""

    def start(self, worker: int) -> Callable[[range, Callable[[Message], None], StopFlag], None]:
        """See ``kdcache.workers.Work``."""
        writer, inputs = SlotWriter(self.slots, worker), {STREAM: frames()}

        def run_unit(unit: range, emit: Callable[[Message], None], stop: StopFlag) -> None:
            for number in unit:
                time.sleep(self.seconds)
                put = writer.put(inputs, stop)
                assert put is not None
                made = clip(number)
                emit(Prepared(made.task, (STREAM,), made, *put))

        return run_unit


def frames() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What the network is given of a clip."""
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def clip(number: int) -> ClipInputs:
    """A clip whose frames lie elsewhere."""
    name = f"clip-{number:05d}"
    row = {"clip_id": name, "source": f"{name}.mp4", "start_s": 0.0, "stop_s": 1.0}
    task = Task(row, f"/videos/{name}.mp4", "0" * 32, 0.0, 1.0, {STREAM: f"{number:032x}"})
    return ClipInputs(task, {"fingerprint": "0" * 32}, {STREAM: np.arange(32, dtype=np.int32)})
