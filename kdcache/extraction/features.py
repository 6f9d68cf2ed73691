"""The backbones of one worker: batches across clips, checks what comes out, and makes do with less memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.errors import ClipError
from kdcache.extraction.motion import ClipInputs
from kdcache.streams.base import Stream, level_shape

log = logging.getLogger("kdcache")

Compute = Callable[[torch.Tensor], torch.Tensor]


class Backbones:
    """Frozen networks, one for each feature stream, loaded once a worker.

    Batches are always filled to ``batch`` segments (the last with zeros), so that a clip's bytes do not depend on
    which clips share its batch.
    """

    def __init__(self, streams: Sequence[Stream], weights: Mapping[str, Any], device: str, batch: int | None) -> None:
        self.device = device
        self.batch = batch or (1 if device == "cpu" else 8)
        self._streams = [s for s in streams if s.kind == "feature"]
        nets = {
            name: backbones.build(name, weights=weights.get(name))
            for name in {s.backbone for s in self._streams if s.backbone}
        }
        self._compute: dict[str, Compute] = {
            s.name: backbones.frozen(
                nets[str(s.backbone)], str(s.layer), precision=s.recipe["backbone"]["precision"], device=device
            )
            for s in self._streams
        }

    def features(self, clips: Sequence[ClipInputs], stream: Stream) -> list[NDArray[Any] | ClipError]:
        """Features [V, …] (with levels [V, N, …]) of each clip in the stream's dtype, or why a clip has none."""
        segments = np.concatenate([clip.inputs[stream.name] for clip in clips])
        out = self._run(segments, self._compute[stream.name])
        if stream.progress is not None:  # each level was a segment
            out = out.reshape(-1, stream.progress.levels, *level_shape(out.shape[1:]))
        views = len(out) // len(clips)
        return [_checked(out[i * views : (i + 1) * views], stream) for i in range(len(clips))]

    def _run(self, segments: NDArray[Any], compute: Compute) -> NDArray[np.float32]:
        done: list[NDArray[np.float32]] = []
        position = 0
        while position < len(segments):
            part = segments[position : position + self.batch]
            filled = np.zeros((self.batch, *part.shape[1:]), part.dtype)
            filled[: len(part)] = part
            try:
                result = compute(torch.from_numpy(filled).to(self.device))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or self.batch == 1:
                    raise
                self.batch //= 2
                log.warning("Out of memory: going on with batches of %d segments.", self.batch)
                if self.device != "cpu":
                    torch.cuda.empty_cache()
                continue
            done.append(result[: len(part)].float().cpu().numpy())
            position += len(part)
        return np.concatenate(done)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _checked(features: NDArray[np.float32], stream: Stream) -> NDArray[Any] | ClipError:
    """Cast to the stored dtype; NaN, infinity and overflow are the clip's failure, never silent."""
    if not np.isfinite(features).all():
        return ClipError(f"{stream.name} gave NaN or infinite values; check the clip and the checkpoint.")
    dtype = np.dtype(stream.recipe["dtype"])
    peak = float(np.abs(features).max(initial=0.0))
    if peak > float(np.finfo(dtype).max):
        return ClipError(f"{stream.name} reaches {peak:.3g}, beyond {dtype}; extract with --dtype float32.")
    return features.astype(dtype)
