"""How long an extraction will take, estimated from two of its clips."""

from __future__ import annotations

import time

from kdcache.extraction.plan import Plan, WorkUnit
from kdcache.extraction.worker import ClipInputs, WorkerConfig, decoded, prepared
from kdcache.streams.backbone import BackboneStream
from kdcache.workers import StopFlag


def estimate_seconds(plan: Plan, config: WorkerConfig) -> float:
    """Seconds that one worker would take; nothing is written. Sources that cannot be read cost nothing here."""
    from kdcache.extraction.features import Backbones

    total = 0.0
    nets = Backbones(config.streams, config.device, config.batch) if plan.units else None
    for names in {unit.streams for unit in plan.units}:
        tasks = [t for unit in plan.units if unit.streams == names for t in unit.tasks]
        streams = [s for s in config.streams if s.name in names]
        taken: list[float] = []
        # The first clip also pays for what happens once (compilation, buffers): the second one is the measure.
        for task in (tasks[0], tasks[-1]):
            begin = time.perf_counter()
            unit = WorkUnit(names, (task,))
            clips = list(prepared(decoded(unit, streams, config, StopFlag()), streams))
            ready = [c for c in clips if isinstance(c, ClipInputs)]
            for stream in streams:
                if ready and isinstance(stream, BackboneStream) and nets is not None:
                    nets.features([clip.inputs[stream.name] for clip in ready], stream)
            taken.append(time.perf_counter() - begin)
        total += taken[-1] * len(tasks)
    return total
