"""What an answer takes in parameters, multiply-adds and flow fields, counted without computing or loading anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdcache import backbones
from kdcache.backbones.base import Backbone
from kdcache.backbones.weights import Choice
from kdcache.data.inputs import bind
from kdcache.data.ondemand.stream import OnDemand
from kdcache.data.training_data import TrainingData
from kdcache.errors import OptionError
from kdcache.methods import method as method_module
from kdcache.methods.contract import InputStream, Predictor, Segment, SkeletonSegment
from kdcache.recipe import Recipe
from kdcache.runs.online.fitted import open_for
from kdcache.runs.online.recipes import recipes_of, stream_setting
from kdcache.runs.run import Run
from kdcache.store import Cache
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import ClipSpan, Stream
from kdcache.streams.features import FeatureStream
from kdcache.streams.flow import FlowStream
from kdcache.streams.registry import kind_of

LONG = np.arange(60_000) / 100.0
"""Times of a clip in which no two of the fields that a segment takes are the same: ten minutes of 100 frames/s."""


@dataclass(frozen=True)
class Counts:
    """See ``kdcache.runs.cost.Cost``."""

    inputs: tuple[str, ...]
    parameters: int
    multiply_adds: int
    flow_fields: int


def count(run: Run) -> Counts:
    """What one answer of a run takes: of its network and of the backbones below the cached streams that it reads.

    Raises:
        OptionError: a run that has not finished, streams of which it is not known how they were computed, or a network
            that cannot be run on the meta device.
    """
    _ = run.metrics  # refuses a run that has not finished
    cached = run.settings.shards is not None
    opened = run.training_data if cached else open_for(run).opened
    predictor = _on_meta(run, opened)
    batch = {name: _zeros(stream) for name, stream in predictor.inputs.items()}
    try:
        parameters, multiply_adds = counted(predictor.module, lambda: predictor.predict(batch))
    except (RuntimeError, NotImplementedError) as error:  # such as an operation that depends on the data
        reason = str(error).splitlines()[0]
        raise OptionError(f"{run.path}: what its network computes cannot be counted ({reason}).") from error
    if not cached:
        shown = tuple(str(one.stream) for one in run.inputs)
        return Counts(shown, sum(parameters.values()), multiply_adds, 0)
    read = _read(run, predictor)
    below = _below(read)
    return Counts(
        inputs=tuple(dict.fromkeys(one.name for one in read)),
        parameters=sum(parameters.values()) + below[0],
        multiply_adds=multiply_adds + below[1],
        flow_fields=_fields(read),
    )


def counted(module: nn.Module, forward: Callable[[], Any]) -> tuple[dict[int, int], int]:
    """Numbers of the parameters of ``module`` that ``forward`` uses, by identity, and its multiply-adds.

    These are those of convolutions, matrix products and attention, as ``torch.utils.flop_counter`` knows them; on the
    meta device recurrent layers are made of such.
    """
    used, flops = _UsedParameters(module), FlopCounterMode(display=False)
    was_training = module.training
    module.eval()
    with torch.no_grad(), flops, used:
        forward()
    module.train(was_training)
    return used.sizes, flops.get_total_flops() // 2


class _UsedParameters(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which parameters of a module enter an operation."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {id(p): p.numel() for p in module.parameters()}
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if id(value) in self._own:
                self.sizes[id(value)] = self._own[id(value)]
        return func(*args, **(kwargs or {}))


def _on_meta(run: Run, opened: TrainingData) -> Predictor:
    """The network that answers, untrained, on the meta device."""
    data = replace(opened.data, device=torch.device("meta"))
    predictor: Predictor = method_module(run.settings.method).predictor(run.resolved_options, data)
    predictor.module.to("meta")
    return predictor


def _zeros(stream: InputStream) -> torch.Tensor:
    """One clip as a network is given it."""
    dtype = torch.uint8 if isinstance(stream, OnDemand) else torch.float32
    return torch.zeros((1, *stream.shape), dtype=dtype, device="meta")


@dataclass(frozen=True)
class _Read:
    """A cached stream that an answer is made of."""

    name: str
    recipe: Recipe
    features: BackboneStream | None
    """The stream, where a network computes it."""
    segment: Segment | SkeletonSegment | None
    """What is shown of a clip, where it holds frames."""


def _read(run: Run, predictor: Predictor) -> list[_Read]:
    settings, recipes = run.settings, recipes_of(run)
    assert settings.shards is not None
    bindings = bind(Cache(settings.shards, settings.recipe or ()), run.inputs, stream_setting(run))
    return [
        _Read(name, recipes[name], _restored(name, recipes[name]), binding.inputs[0].segment)
        for binding in bindings
        if any(one.name in predictor.inputs for one in binding.inputs)
        for name in binding.streams
    ]


def _restored(name: str, recipe: Recipe) -> BackboneStream | None:
    """The stream of features that wrote a recipe, whose weights are not looked for; None where it is of no network."""
    kind = kind_of(recipe)
    if not issubclass(kind, Stream):
        raise OptionError(f"{name} was imported, so what computing it takes is not known here.")
    if not issubclass(kind, BackboneStream):
        return None
    try:
        return kind.from_recipe(name, recipe, lambda backbone: Choice(seed=0))
    except KeyError as error:
        raise OptionError(f"{name}: what computing it takes is not known, for its recipe lacks {error}.") from error


def _below(read: Sequence[_Read]) -> tuple[int, int]:
    """Parameters and multiply-adds of the backbones up to the cached layers.

    Streams of one network share its parameters. Where it is shown the same segments for several, they share the way to
    their layers, too: the longest counts.
    """
    networks: dict[str, Backbone] = {}
    used: dict[int, int] = {}
    passes: dict[str, int] = {}
    for one in read:
        stream, backbone = one.features, one.recipe.get("backbone", {})
        if stream is None:
            continue
        identity = _text(backbone, "layer", "precision")
        if identity not in networks:
            networks[identity] = backbones.outline(stream.backbone)
        net = networks[identity]
        try:
            parameters, multiply_adds = counted(net, partial(_up_to, net, stream))
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"{one.name}: what its backbone computes cannot be counted ({reason}).") from error
        used |= parameters
        shown = _text(one.recipe, "stream", "dtype", "backbone") + _text(backbone, "layer")
        passes[shown] = max(passes.get(shown, 0), stream.input_shape[0] * multiply_adds)
    return sum(used.values()), sum(passes.values())


def _up_to(net: Backbone, stream: BackboneStream) -> None:
    """The way of one segment to the cached layer."""
    x = torch.zeros((1, *stream.input_shape[1:]), dtype=torch.uint8, device="meta")
    net.features(net.prepare(x), stream.layer)


def _text(recipe: Mapping[str, Any], *without: str) -> str:
    return json.dumps({key: value for key, value in recipe.items() if key not in without}, sort_keys=True)


def _fields(read: Sequence[_Read]) -> int:
    """TV-L1 fields of a clip that is so long that no two of those of a segment are the same."""
    pairs: set[tuple[int, ...]] = set()
    dense: dict[tuple[str, Segment], int] = {}
    for one in read:
        stream = one.features
        if isinstance(stream, FeatureStream) and stream.bound is not None:
            request = stream.request(LONG, ClipSpan("", math.nan, math.nan))
            pairs |= {(stream.short_side, *pair) for pair in request.pairs.tolist()}
        elif kind_of(one.recipe) is FlowStream and isinstance(one.segment, Segment):
            dense[one.name, one.segment] = one.segment.frames * one.segment.stack
    return len(pairs) + sum(dense.values())
