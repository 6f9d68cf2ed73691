"""The backbones of one worker: batches across clips, checks what comes out, and makes do with less memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from kdcache import backbones
from kdcache.backbones.base import Backbone
from kdcache.backbones.freeze import FrozenLayers
from kdcache.device_errors import device_errors, is_broken_device, is_out_of_memory, release_memory
from kdcache.errors import BackboneError, ClipError, KdcacheError, OptionError, raised
from kdcache.log import logger
from kdcache.store.quantised import READ_DTYPE, Quantised, quantise
from kdcache.streams.backbone import BackboneStream, passes
from kdcache.streams.base import Stream

Compute = Callable[[torch.Tensor], list[torch.Tensor]]
"""Segments → their features in each of some streams."""
Found = TypeVar("Found")

REMEDY = "take fewer --workers where they share it, end what else uses it, or extract on another --device"

BATCH_VALUES = 8 * 32 * 224 * 224 * 3  # of what a GPU is given at once: eight of I3D's segments …
MOST_SEGMENTS = 256  # … or, of smaller ones, at most so many


class Backbones:
    """Frozen networks, one for all feature streams that are layers of it, loaded once a worker; of cross-fitted weights
    those of the parts when their first clip comes.

    Batches are always filled up (the last with zeros), so that a clip's bytes do not depend on which clips share its
    batch.

    Args:
        streams: of the run; those that have no network are left out.
        device: where they are.
        batch: segments that are computed at once; ``None``: 1 on a CPU, on a GPU by their size.
        compile: whether networks are compiled, on a GPU.
    """

    def __init__(self, streams: Sequence[Stream], device: str, batch: int | None, compile: bool = False) -> None:
        self.device = device
        self._compile = compile
        self.most: int | None = None
        """Segments that fit into memory at once, where it was exhausted before."""
        self._batch = batch or (1 if device == "cpu" else None)
        networks = passes(streams)
        built = {
            key: backbones.build(*key) for key in dict.fromkeys((its[0].backbone, its[0].weights) for its in networks)
        }
        self._passes = {stream.name: its for its in networks for stream in its}
        self._frozen: dict[tuple[str, int | None], FrozenLayers] = {}
        for its in networks:
            self._freeze(built[its[0].backbone, its[0].weights], its, None)

    def size(self, segments: NDArray[Any]) -> int:
        """How many segments such as these, [n, …], make a batch."""
        size = self._batch or batch_size(math.prod(segments.shape[1:]))
        return size if self.most is None else min(size, self.most)

    def _freeze(self, net: Backbone, streams: Sequence[BackboneStream], part: int | None) -> None:
        """One network for all streams where one pass gives their layers, else one for each."""
        apart = len(streams) > 1 and net.deepest([stream.layer for stream in streams]) is None
        for together in [[stream] for stream in streams] if apart else [streams]:
            with device_errors(self.device, f"{together[0].name}: its network", REMEDY):
                layers = [stream.layer for stream in together]
                frozen = backbones.frozen_layers(net, layers, together[0].precision, self.device, self._compile)
            self._frozen |= {(stream.name, part): frozen for stream in together}

    def network(self, streams: Sequence[BackboneStream], part: int | None) -> Compute:
        """That of all clips, or the one that was fitted without a part of them, up to some of ``passes``' streams."""
        if (streams[0].name, part) not in self._frozen:
            assert part is not None
            net = backbones.build(streams[0].backbone, streams[0].weights.part(part))
            self._freeze(net, self._passes[streams[0].name], part)
        frozen = [self._frozen[stream.name, part] for stream in streams]
        layers = [stream.layer for stream in streams]
        if all(one is frozen[0] for one in frozen):
            return partial(frozen[0].at, layers)
        return lambda rows: [one.at([layer], rows)[0] for one, layer in zip(frozen, layers, strict=True)]

    def features(
        self, inputs: Sequence[NDArray[Any]], stream: BackboneStream, part: int | None = None
    ) -> list[NDArray[Any] | Quantised | ClipError]:
        """As ``several``, of one stream."""
        return self.several(inputs, [stream], part)[stream.name]

    def several(
        self, inputs: Sequence[NDArray[Any]], streams: Sequence[BackboneStream], part: int | None = None
    ) -> dict[str, list[NDArray[Any] | Quantised | ClipError]]:
        """Features [V, …] (with levels [V, N, …]) of each clip as they are stored, or why a clip has none.

        Args:
            inputs: of each clip, what the first stream's ``compute`` gave, [segments, …].
            streams: those of one of ``passes``.
            part: of cross-fitted weights whose network computes them; ``None``: that of all clips.

        Returns:
            stream → its features of each clip.

        Raises:
            OptionError: a layer that does not keep clips apart.
            DeviceError: not even one segment fits into the device's memory, or the device is broken. Never a clip's
                fault.
            BackboneError: the network raised an exception. Never a clip's fault, either.
        """
        names = " and ".join(stream.name for stream in streams)
        outputs = self._run(np.concatenate(inputs), self.network(streams, part), names)
        found = {}
        for stream, output in zip(streams, outputs, strict=True):
            out = stream.assemble(output)
            views = len(out) // len(inputs)
            check_shape(out, stream)
            found[stream.name] = [_checked(out[i * views : (i + 1) * views], stream) for i in range(len(inputs))]
        return found

    def _run(self, segments: NDArray[Any], compute: Compute, name: str) -> list[NDArray[np.float32]]:
        done: list[list[NDArray[np.float32]]] = []
        position = 0
        while position < len(segments):
            size = self.size(segments)
            part = segments[position : position + size]
            filled = np.zeros((size, *part.shape[1:]), part.dtype)
            filled[: len(part)] = part
            result = self.attempt(
                lambda rows: [found.float().cpu().numpy() for found in compute(rows.to(self.device))],
                torch.from_numpy(filled),
                name,
            )
            if result is not None:
                done.append([found[: len(part)] for found in result])
                position += len(part)
        return [np.concatenate(of_stream) for of_stream in zip(*done, strict=True)]

    def attempt(self, work: Callable[[torch.Tensor], Found], rows: torch.Tensor, name: str) -> Found | None:
        """What a function gives for at most ``size`` segments, or None where only fewer fit into memory: ``size`` is
        smaller then.

        Raises:
            DeviceError: one segment does not fit, or the device is broken.
            BackboneError: the network raised an exception of another kind.
        """
        with device_errors(self.device, f"{name}: one segment", REMEDY):
            try:
                return work(rows)
            except KdcacheError:
                raise
            except Exception as error:  # whatever a user's own network raises
                if is_broken_device(error):
                    raise
                if not is_out_of_memory(error):
                    raise BackboneError(
                        f"{name}: its network failed with {raised(error)}: correct it, then run the same command "
                        "again, which goes on from what is saved."
                    ) from error
                if len(rows) == 1:
                    raise
        self.most = len(rows) // 2  # the tensors of the attempt are gone by now
        logger.warning("Out of memory: going on with batches of %d segments.", self.most)
        release_memory(self.device)
        return None


def batch_size(values: int) -> int:
    """How many segments of so many values a GPU is given at once: a power of two."""
    most = max(1, min(MOST_SEGMENTS, BATCH_VALUES // max(1, values)))
    return 1 << (most.bit_length() - 1)


def check_shape(features: NDArray[Any], stream: BackboneStream) -> None:
    """``OptionError`` for features [views, …] of another shape than the stream's."""
    if stream.shape is not None and features.shape[1:] != stream.shape[1:]:
        raise OptionError(
            f"{stream.name} gave {list(features.shape[1:])} a view where {list(stream.shape[1:])} was expected, so its "
            "layer does not keep clips apart: choose another."
        )


def computed_dtype(stream: BackboneStream) -> np.dtype[Any]:
    """What features are cast to where they were computed: as they are stored, float32 where that is quantised."""
    return np.dtype(np.float32 if stream.dtype == "uint8" else stream.dtype)


def range_error(peak: float, stream: BackboneStream) -> ClipError | None:
    """Why features whose largest magnitude is ``peak`` (NaN where one is NaN) cannot be stored, if they cannot."""
    if not math.isfinite(peak):
        return ClipError(f"{stream.name} gave NaN or infinite values; check the clip and the checkpoint.")
    dtype = READ_DTYPE if stream.dtype == "uint8" else np.dtype(stream.dtype)
    if peak > float(np.finfo(dtype).max):
        return ClipError(f"{stream.name} reaches {peak:.3g}, beyond {dtype}; extract with --dtype float32.")
    return None


def stored(features: NDArray[Any], stream: BackboneStream) -> NDArray[Any] | Quantised:
    """Features as shards hold them."""
    if stream.dtype == "uint8":
        return quantise(features, stream.shared)
    return features.astype(computed_dtype(stream), copy=False)


def _checked(features: NDArray[np.float32], stream: BackboneStream) -> NDArray[Any] | Quantised | ClipError:
    """As it is stored; NaN, infinity and overflow are the clip's failure, never silent."""
    error = range_error(float(np.abs(features).max(initial=0.0)), stream)
    return stored(features, stream) if error is None else error
