"""The backbones of one worker: batches across clips, checks what comes out, and makes do with less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.base import Backbone
from kdcache.device_errors import device_errors, is_out_of_memory, release_memory
from kdcache.errors import ClipError, OptionError
from kdcache.log import logger
from kdcache.store.quantised import READ_DTYPE, Quantised, quantise
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import Stream

Compute = Callable[[torch.Tensor], torch.Tensor]

REMEDY = "take fewer --workers, which share it, end what else uses it, or extract on another --device"


class Backbones:
    """Frozen networks, one for each feature stream, loaded once a worker; of cross-fitted weights those of the parts
    when their first clip comes.

    Batches are always filled to ``batch`` segments (the last with zeros), so that a clip's bytes do not depend on
    which clips share its batch.
    """

    def __init__(self, streams: Sequence[Stream], device: str, batch: int | None) -> None:
        self.device = device
        self.batch = batch or (1 if device == "cpu" else 8)
        ours = [s for s in streams if isinstance(s, BackboneStream)]
        nets = {(s.backbone, s.weights): None for s in ours}
        built = {key: backbones.build(*key) for key in nets}
        self._compute: dict[tuple[str, int | None], Compute] = {
            (s.name, None): self._frozen(built[s.backbone, s.weights], s) for s in ours
        }

    def _frozen(self, net: Backbone, stream: BackboneStream) -> Compute:
        with device_errors(self.device, f"{stream.name}: its network", REMEDY):
            return backbones.frozen(net, stream.layer, precision=stream.precision, device=self.device)

    def _network(self, stream: BackboneStream, part: int | None) -> Compute:
        """That of all clips, or the one that was fitted without a part of them."""
        if (stream.name, part) not in self._compute:
            assert part is not None
            net = backbones.build(stream.backbone, stream.weights.part(part))
            self._compute[stream.name, part] = self._frozen(net, stream)
        return self._compute[stream.name, part]

    def features(
        self, inputs: Sequence[NDArray[Any]], stream: BackboneStream, part: int | None = None
    ) -> list[NDArray[Any] | Quantised | ClipError]:
        """Features [V, …] (with levels [V, N, …]) of each clip as they are stored, or why a clip has none.

        Args:
            inputs: of each clip, what the stream's ``compute`` gave, [segments, …].
            stream: which.
            part: of cross-fitted weights whose network computes them; ``None``: that of all clips.

        Raises:
            OptionError: a layer that does not keep clips apart.
            DeviceError: not even one segment fits into the device's memory, or the device is broken. Never a clip's
                fault.
        """
        out = stream.assemble(self._run(np.concatenate(inputs), self._network(stream, part), stream.name))
        views = len(out) // len(inputs)
        if stream.shape is not None and out.shape[1:] != stream.shape[1:]:
            raise OptionError(
                f"{stream.name} gave {list(out.shape[1:])} a view where {list(stream.shape[1:])} was expected, so its "
                "layer does not keep clips apart: choose another."
            )
        return [_checked(out[i * views : (i + 1) * views], stream) for i in range(len(inputs))]

    def _run(self, segments: NDArray[Any], compute: Compute, name: str) -> NDArray[np.float32]:
        done: list[NDArray[np.float32]] = []
        position = 0
        while position < len(segments):
            part = segments[position : position + self.batch]
            result = self._computed(part, compute, name)
            if result is None:  # the tensors of the attempt are gone by now
                self.batch //= 2
                logger.warning("Out of memory: going on with batches of %d segments.", self.batch)
                release_memory(self.device)
                continue
            done.append(result)
            position += len(part)
        return np.concatenate(done)

    def _computed(self, part: NDArray[Any], compute: Compute, name: str) -> NDArray[np.float32] | None:
        """What a network gives for at most ``batch`` segments, or None where fewer may fit into memory.

        Raises:
            DeviceError: one segment does not fit, or the device is broken.
        """
        filled = np.zeros((self.batch, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        with device_errors(self.device, f"{name}: one segment", REMEDY):
            try:
                result = compute(torch.from_numpy(filled).to(self.device))
                return result[: len(part)].float().cpu().numpy()
            except (RuntimeError, MemoryError) as error:
                if self.batch == 1 or not is_out_of_memory(error):
                    raise
        return None


def _checked(features: NDArray[np.float32], stream: BackboneStream) -> NDArray[Any] | Quantised | ClipError:
    """As it is stored; NaN, infinity and overflow are the clip's failure, never silent."""
    if not np.isfinite(features).all():
        return ClipError(f"{stream.name} gave NaN or infinite values; check the clip and the checkpoint.")
    quantised = stream.dtype == "uint8"
    dtype = READ_DTYPE if quantised else np.dtype(stream.dtype)
    peak = float(np.abs(features).max(initial=0.0))
    if peak > float(np.finfo(dtype).max):
        return ClipError(f"{stream.name} reaches {peak:.3g}, beyond {dtype}; extract with --dtype float32.")
    return quantise(features, stream.shared) if quantised else features.astype(dtype)
