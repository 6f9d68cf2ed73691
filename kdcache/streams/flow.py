"""``flow`` and ``flow-warped``: TV-L1 flow between the frames of a clip, the latter without the camera's motion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from kdcache.motion.flow_image import colour_wheel, dequantise, legend, quantise
from kdcache.motion.tv_l1.params import TVL1Params
from kdcache.recipe import Recipe
from kdcache.streams.base import Array, Choose, Payload, Strip
from kdcache.streams.flow_memory import AUTO
from kdcache.streams.settings import StreamSettings
from kdcache.streams.video import ClipFrames, DenseStream, FrameRequest, flow_pairs

WARPED = "flow-warped"


@dataclass(frozen=True, kw_only=True)
class FlowStream(DenseStream):
    """Flow [T − 1, H, W, 2] (x, y) in pixels, quantised to uint8 or float16; a clip of one frame has no field."""

    bound: float | None
    """Flow beyond this many pixels is clipped; ``None``: kept as float16."""

    names: ClassVar[tuple[str, ...]] = ("flow", WARPED)
    channels: ClassVar[float] = 2

    @classmethod
    def from_settings(cls, name: str, settings: StreamSettings, choose: Choose) -> Self:
        """See ``Stream``."""
        bound = settings.bound if settings.flow == "uint8" else None
        return cls(name=name, bound=bound, flow_engine=settings.flow_engine, **cls.common(settings))

    @classmethod
    def from_recipe(cls, name: str, recipe: Recipe, choose: Choose) -> Self:
        """See ``Stream``."""
        engine = recipe["flow"].get("engine", AUTO)
        return cls(name=name, bound=recipe.get("bound"), flow_engine=engine, **cls.common_in(recipe))

    @classmethod
    def axes_in(cls, recipe: Mapping[str, Any]) -> str | None:
        """See ``Stream``."""
        return "THWC"

    @classmethod
    def strips(cls, name: str, recipe: Mapping[str, Any], array: Array, frames: NDArray[np.int32]) -> list[Strip]:
        """Direction as colour, length as saturation."""
        if not len(array):
            return []
        flow = dequantise(array, recipe["bound"]) if array.dtype == np.uint8 else array.astype(np.float32)
        peak = max(1.0, float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 99)))
        images = np.stack([colour_wheel(f, peak) for f in flow])
        return [Strip(name, images, frames, order=1, note=f"rim = {peak:.1f} px", legend=legend(80))]

    def to_recipe(self) -> Recipe:
        """See ``Stream``."""
        recipe = {**super().to_recipe(), "flow": flow_recipe(self.flow_engine or AUTO)}
        return {**recipe, "dtype": "float16"} if self.bound is None else {**recipe, "bound": self.bound}

    def pairs(self, indices: NDArray[np.int32], low: int, high: int) -> NDArray[np.int32]:
        """Each sampled frame with the next."""
        return flow_pairs(indices, low, high, dense=True, fps=self.sampling.fps)

    def length(self, request: FrameRequest) -> int:
        """One field less than frames."""
        return len(request.pairs)

    def some(self, request: FrameRequest, numbers: NDArray[np.integer[Any]]) -> FrameRequest:
        """See ``DenseStream``; a field is that of its two frames, whatever lies around them."""
        return FrameRequest(request.indices[:0], request.pairs[numbers])

    def compute(self, clip: ClipFrames) -> Payload:
        """uint8 or float16 [T − 1, H, W, 2]."""
        request = clip.requests[self.name]
        if len(request.pairs):
            flow = clip.flow(request.pairs, self.side(clip.native), self.flow_engine or AUTO)
        else:  # a clip of one frame has no motion
            height, width = clip.pixels[int(request.indices[0]), self.side(clip.native)].shape[:2]
            flow = np.zeros((0, height, width, 2), np.float32)
        if self.name == WARPED and len(request.pairs):
            flow = self._warped(clip, request.pairs, flow)
        return flow.astype(np.float16) if self.bound is None else quantise(flow, self.bound)

    def _warped(self, clip: ClipFrames, pairs: NDArray[np.int32], flow: Array) -> Array:
        """The flow that is left when that of the camera is taken off."""
        from kdcache.motion.camera import homography, warped_flow

        gray = {int(i): clip.gray(int(i), self.side(clip.native)) for i in np.unique(pairs)}
        return np.stack(
            [
                warped_flow(field, homography(gray[int(a)], gray[int(b)], field))
                for (a, b), field in zip(pairs, flow, strict=True)
            ]
        )


def flow_recipe(engine: str) -> dict[str, Any]:
    """What recipes say of TV-L1; of the engine only where one was asked for by name."""
    return {"algorithm": "tvl1", **asdict(TVL1Params()), **({} if engine == AUTO else {"engine": engine})}
