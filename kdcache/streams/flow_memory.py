"""TV-L1 flow between frames of a clip: which engine computes it, and what is kept for the next clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcache.recipe import FLOW_ENGINE
from kdcache.stopwatch import FLOW, part

if TYPE_CHECKING:
    from kdcache.streams.video import ClipFrames

AUTO = "auto"
FLOW_ENGINES = (AUTO, "cpu", "torch")


def engine_on(device: str, asked: str) -> str:
    """The engine of TV-L1 that computes flow on a device of that name, for what was asked for."""
    if asked != AUTO:
        return asked
    return "torch" if device.startswith("cuda") else "cpu"


class FlowMemory:
    """TV-L1 flow of one source's frame pairs, kept while a later clip may ask for them again."""

    def __init__(self, threads: int, device: str) -> None:
        self._fields: dict[tuple[int, int, int, str], NDArray[np.float32]] = {}
        self._threads = threads
        self._device = device

    def get(self, clip: ClipFrames, pairs: NDArray[np.int32], short_side: int, asked: str) -> NDArray[np.float32]:
        """Flow of ``pairs`` [n, 2]: float32 [n, H, W, 2], in pixels of frames with that short side.

        What computed it is noted in the clip's origin.

        Raises:
            DeviceError: the device of the engine ``torch`` cannot hold one pair, or is broken.
        """
        from kdcache.motion import tvl1_pairs

        engine = engine_on(self._device, asked)
        clip.origin[FLOW_ENGINE] = engine
        fields = self._fields
        for key in [k for k in fields if k[0] < clip.first]:
            del fields[key]
        wanted = [(int(a), int(b), short_side, engine) for a, b in pairs]
        new = sorted({k for k in wanted if k not in fields})
        if new:
            gray = {i: clip.gray(i, short_side) for i in {k[0] for k in new} | {k[1] for k in new}}
            first = np.stack([gray[k[0]] for k in new])
            second = np.stack([gray[k[1]] for k in new])
            where: dict[str, Any] = {"device": self._device} if engine == "torch" else {"threads": self._threads}
            with part(FLOW):
                fields.update(zip(new, tvl1_pairs(first, second, engine=engine, **where), strict=True))
        return np.stack([fields[k] for k in wanted])
