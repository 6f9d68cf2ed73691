"""I3D to ``mixed4a`` on this CPU: frozen inference against a plain eager float32 forward of the same network.

    python benchmarks/i3d.py [--write]

All runs take turns in one process, on one thread (a worker's share of a busy machine) and on all of them. "eager fp32"
is the published network as a plain module under ``no_grad`` on a contiguous float tensor made beforehand; the frozen
runs start from the decoder's bytes. Random weights, whose activations keep the scale of real ones; relative errors are
norms over the whole map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from common import compare, main, precisions
from kdcache import backbones
from kdcache.backbones.base import Backbone

LAYER = "mixed4a"


def case(net: Backbone, size: int, batch: int, repeat: int) -> dict[str, Any]:
    """Milliseconds a clip, speed-ups over eager fp32 and relative errors for one input size and batch."""
    clips = torch.randint(0, 256, (batch, 32, size, size, 3), dtype=torch.uint8, generator=torch.Generator())
    x = net.prepare(clips)
    contiguous = x.contiguous()
    frozen = {precision: backbones.frozen(net, LAYER, precision) for precision in precisions()}
    runs: dict[str, Callable[[], Any]] = {
        "eager fp32": lambda: net.features(contiguous, LAYER),
        "eager fp32, channels-last input": lambda: net.features(x, LAYER),
    }
    runs |= {f"frozen {precision}": partial(run, clips) for precision, run in frozen.items()}
    with torch.no_grad():
        seconds = compare(runs, repeat=repeat)
        exact = net.features(contiguous, LAYER)
    plain = seconds["eager fp32"]
    return {
        "ms a clip": {name: round(1e3 * s / batch, 1) for name, s in seconds.items()},
        "times faster than eager fp32": {name: round(plain / s, 2) for name, s in seconds.items()},
        "relative error": {
            name: float(f"{((run(clips) - exact).norm() / exact.norm()).item():.1e}") for name, run in frozen.items()
        },
    }


def measure() -> Iterator[tuple[str, Any]]:
    """32×224×224 and 32×112×112 clip by clip, and four small clips at once."""
    net = backbones.build("i3d-rgb", weights="random:0")
    yield "layer", LAYER
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for size, batch in ((224, 1), (112, 1), (112, 4)):
            name = f"32x{size}x{size}, batch {batch}, {threads} thread{'s' * (threads > 1)}"
            yield name, case(net, size, batch, repeat=7)


if __name__ == "__main__":
    main("i3d", measure, __doc__ or "")
