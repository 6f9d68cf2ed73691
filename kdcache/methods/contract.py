"""What a method and the trainer agree on: a typed protocol, and plain data classes over tensors; nothing to inherit
from.

A method is a module that provides what ``Method`` lists. It declares its inputs; the trainer finds them in the cache
(or makes them from the sources), checks their axes, and hands batches of named tensors to the stages that the method
yields. A method knows torch, ``kdcache.losses``, ``kdcache.metrics`` and this file; where tensors come from and where
numbers go is the trainer's business."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdcache.metrics.topk import measure
from kdcache.splits import HELD_OUT as HELD_OUT

Batch = dict[str, Tensor]
"""Tensors on the device by name: each input ``[B, ...]``, each field ``[B]``, and ``view`` ``[B]``. An input of
sequences that differ in length is padded behind their ends to the longest of the batch, ``[B, T, D]``, and comes with
their lengths, int64 ``[B]``, under the name that ``lengths_name`` gives."""

Outputs = dict[str, Tensor]
"""What networks return, by name: ``logits`` ``[B, C]`` (``[B, N, C]`` for N levels), and whatever the losses need."""

MetricsFn = Callable[[NDArray[np.floating], NDArray[np.int64]], Mapping[str, float]]
"""Class probabilities ``[n, ..., C]`` and true classes ``[n]`` → metrics in per cent; higher is better."""

VALIDATION = "validation"
"""The only split that may select anything: the best epoch, the end of training, a learning rate."""

UNLABELLED = -1
"""Class index of a sample without a label."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What is shown of a clip whose frames are cached (``rgb``, ``flow``, ``idt``) or decoded on demand.

    Frames of one example are cut alike in every input: the same crop, the same scale, the same moments, the same
    mirror (which changes the sign of horizontal flow). Beside cached features, frames are shown in the features'
    views and at the source frames from which these were computed, without further augmentation; see ``beside``."""

    frames: int
    """T, spread evenly over the clip."""
    size: int = 224
    """Side of the crop in pixels."""
    resize: int | None = None
    """Short side in pixels before cropping; none: 8/7 of ``size``."""
    fps: float | None = None
    """Rate at which frames are taken; none spreads them over the clip. From sources only."""
    stack: int = 1
    """Consecutive flow fields that make up one frame, centred on it and clamped at the clip's ends."""
    augmentations: int = 1000
    """Different augmented views of each clip, one of which is drawn in each epoch; 0: always the centre crop."""
    mirror: bool = True
    """Half of the augmented views are mirrored."""
    beside: bool = True
    """Off: augmented as if there were no features beside them, for stages that read frames alone."""


@dataclass(frozen=True, kw_only=True)
class SkeletonSegment:
    """What is shown of a skeleton clip that becomes an image on demand, see ``kdcache.skeletons.image``."""

    resize: Literal["scipy_bytescale", "float_bilinear"] = "scipy_bytescale"
    """How joints become images."""
    observed: Literal["random", "full"] = "full"
    """What augmented views show: clips observed up to a random level, or whole ones."""
    levels: int = 10
    """N, the number of levels of progress."""
    progress: Literal["prefix", "segment"] = "prefix"
    """What is seen at a level: everything up to it, or its own part alone."""
    augmentations: int = 1000
    """Different turned views of each clip, one of which is drawn in each epoch; 0: always the clip as it is."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input that a method reads.

    ``axes`` is the order of its axes as they reach the method, without the axis of views, one letter each: ``CTHW``
    maps, ``ND`` vectors at N levels, ``TD``, ``D``; ``THWC`` frames, ``THW`` motion maps. A stream whose axes are a
    permutation of these is transposed; any other is refused by name. An input may take one of several sets of axes
    (``also``); which it got is ``Data.axes[name]``."""

    name: str
    """Of the tensor in a batch."""
    axes: str
    also: tuple[str, ...] = ()
    """Other axes that will do as well, in order of preference after ``axes``: where a cache holds streams of several
    kinds and none is named, those of the first that fits are read."""
    ragged: bool = False
    """Whether streams will do whose clips differ in length (``TD``, imported): see ``Batch`` and ``Data.ragged``."""
    stream: str = "*"
    """Pattern of the streams that will do (``*/layer3``, ``i3d-flow/*``, ``rgb``); inputs with one pattern and one
    set of axes read one stream."""
    role: str = "clip"
    """Which clip of an example: ``clip``, or of a pair ``observed`` or ``action``."""
    when: Literal["always", "train"] = "always"
    """``train``: privileged information, read in training only; predicting never opens its stream."""
    segment: Segment | SkeletonSegment | None = None
    """For streams of frames, and of skeletons made on demand: what is shown of a clip."""
    mirror: bool = True
    """Off: cached views that are mirrored are not shown, of this and of all inputs beside it."""
    extract: tuple[str, ...] = ()
    """Streams that ``kdcache extract --for METHOD`` computes for this input."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of that extraction, such as ``levels``."""
    advice: Mapping[str, str] = field(default_factory=dict, hash=False)
    """For axes that will not do what to try, as the end of a sentence: {"TD": "set parts=10 if …"}."""

    @property
    def accepts(self) -> tuple[str, ...]:
        """All sets of axes that will do, the preferred one first."""
        return (self.axes, *self.also)


class InputStream(Protocol):
    """One stream of numbered clips (rows), each with V views of one shape.

    A stream of sequences that differ in length has one view, the shape of the longest, and their lengths, int64
    ``[clips]``, as its attribute ``lengths``; see ``lengths_of``."""

    shape: tuple[int, ...]
    """Of one view, in the order of the input's axes, e.g. (480, 8, 14, 14)."""
    views: int
    available: Tensor | None
    """Which rows there are, bool ``[clips]``; none: all."""

    @property
    def resident(self) -> bool:
        """Whether it lies in the device's memory; else batches are read while the device computes."""
        ...

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes may be filled on the device beside it."""
        ...

    def map(self, fn: Callable[[Tensor], Tensor]) -> InputStream:
        """The same stream with each array ``[*shape]`` passed through a fixed function, once where it is resident."""
        ...

    def fetch(self, rows: Tensor, views: Tensor, keys: Tensor) -> Tensor:
        """The given view of each row, as stored, wherever is cheapest; may be called from another thread.

        ``keys`` ``[b]`` name the examples: inputs of one example draw their augmentation from one key.
        """
        ...

    def to_device(self, fetched: Tensor) -> Tensor:
        """What ``fetch`` returned, on the device: float32; frames and flow uint8 (``kdcache.motion.flow_image``)."""
        ...


@dataclass(frozen=True)
class Split:
    """The examples of one split. ``rows`` and ``labels`` are int64 ``[n]`` on the CPU."""

    names: list[str]
    rows: dict[str, Tensor]
    """For each role ("clip"; or "observed", "action") the number of its clip; -1 where there is none."""
    labels: dict[str, Tensor]
    """For each target ("label", "verb", "noun") the class index, ``UNLABELLED`` where there is none."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class BatchSource:
    """What one pass reads: for each input the stream and its rows ``[n]``; fields ``[n]`` come along as they are."""

    inputs: dict[str, tuple[InputStream, Tensor]]
    fields: dict[str, Tensor] = field(default_factory=dict)
    num_unlabeled: int = 0
    """The last so many examples are mixed half and half into every batch."""
    steps: int | None = None
    """Batches of one pass, as long as it takes; none: as many as show each of the other examples once."""

    def __len__(self) -> int:
        return next(len(rows) for _, rows in self.inputs.values())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training: the parameters of ``optimizer`` are moved along the gradient of the sum of ``losses``.

    Everything else in ``module`` is frozen while the stage trains: it takes no gradient, and parts without any
    trainable parameter stay in evaluation mode, batch norms included."""

    name: str
    module: nn.Module
    train: BatchSource
    losses: Callable[[Batch], dict[str, Tensor]]
    """Terms of the objective for a batch, each a scalar; their sum, each with its weight, is minimised."""
    predict: Callable[[Batch], Tensor]
    """Logits ``[B, ..., C]`` of a batch of ``eval_sets``."""
    epochs: int
    """At most; 0 for a module that is ready as it is."""
    batch_size: int
    eval_sets: dict[str, BatchSource]
    """For each held-out split the labelled examples that are scored after every epoch, with the field ``y``."""
    optimizer: Optimizer | None = None
    """None only where there is nothing to train."""
    scheduler: LRScheduler | None = None
    """Stepped once an epoch; a ``ReduceLROnPlateau`` with the metric that selects the best epoch.
    None keeps the rate."""
    grad_clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    diagnostics: Callable[[Batch], dict[str, Tensor]] | None = None
    """Further scalars to log, computed on the last batch of each epoch in evaluation mode without gradient."""
    metrics_fn: MetricsFn = measure
    """Metrics of ``eval_sets``."""
    monitor: str = "top1"
    """Which of them chooses the best epoch, on split ``validation``."""
    patience: int = 0
    """Early stopping: epochs without a better one after which training stops and the best weights are handed on; 0
    never does, and hands on the last."""
    share_key: Mapping[str, Any] | None = None
    """All options that this stage's result depends on, as plain values, when other runs on the same data and seed may
    take it over instead of training it again; None: they may not."""
    seed: int | None = None
    """Of the order of its batches and of random numbers while it trains, where it is not the run's, so that runs of
    several seeds share it."""
    share_inputs: tuple[str, ...] = ()
    """Inputs beside those of ``train`` on which its result depends, such as those of earlier stages."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factors of terms that ``losses`` gives without them; other terms have theirs already."""
    reads: nn.Module | None = None
    """Of a stage that can train together with others (see ``Together``): buffers that ``losses`` reads beside
    ``module``, such as a teacher's answers."""

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the objective for a batch."""
        found = self.losses(batch)
        if not isinstance(found, dict):
            raise TypeError(
                f"stage {self.name}: losses returns {type(found).__name__}; it returns a dict of scalar terms"
            )
        return {name: self.weights[name] * term if name in self.weights else term for name, term in found.items()}


@dataclass(frozen=True)
class AnswerAxis:
    """What the N answers ``[B, N, C]`` of a network stand for."""

    name: str
    """``observed``: per cent of a clip that has been seen; ``tau_s``: seconds until the action begins."""
    values: tuple[float, ...]
    """Of each answer, N of them."""
    main: float
    """The one that counts where a single answer is asked for."""

    @property
    def main_index(self) -> int:
        """The place of ``main`` among the answers."""
        return self.values.index(self.main)


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Which stage's weights answer, the network that they belong to, and what it reads."""

    stage: str
    module: nn.Module
    predict: Callable[[Batch], Tensor]
    """Logits ``[B, ..., C]`` of a batch of ``inputs``."""
    inputs: Mapping[str, InputStream]
    """What it reads, by name: inputs with ``when="always"`` alone."""
    role: str
    """The clip of an example that it answers for."""
    metrics_fn: MetricsFn = measure
    batch_size: int = 64
    """Examples scored at once."""
    axis: AnswerAxis | None = None
    """What several answers of one clip stand for; none: observation levels, of which the last is the main one."""
    trained_in: tuple[str, ...] = ()
    """Stages before ``stage`` that trained its weights too: their optimiser steps count as its own."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a method may know of a cache and a machine."""

    splits: dict[str, Split]
    """"train" and at least one held-out split."""
    classes: dict[str, list[int]]
    """For each target the manifest's label of every class index, ascending."""
    inputs: Mapping[str, InputStream]
    """The stream of each input."""
    roles: Mapping[str, str]
    """Of each input."""
    axes: Mapping[str, str] = field(default_factory=dict)
    """Of each input those of its ``Input.accepts`` in which its arrays come."""
    ragged: frozenset[str] = frozenset()
    """Inputs whose clips differ in length."""
    layers: Mapping[str, str] = field(default_factory=dict)
    """For each input the backbone's layer that its stream holds; empty where there is none."""
    clip_ids: Sequence[str] = ()
    """Of the clips that rows number."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """For each input of cached features the side in pixels of the crops that they were computed from, where known."""
    sampled: Mapping[str, str] = field(default_factory=dict)
    """For each input of features which frames of a clip they are of and at which size, as text to compare."""
    fitted: frozenset[str] = frozenset()
    """Clips whose labels a backbone of the streams was fitted on; none for published and random weights. Of
    cross-fitted weights those of every network, for each clip's features stand beside the others'."""
    cross_fitted: frozenset[str] = frozenset()
    """Those of them whose features come from a network that has not seen their own label."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What else the data says of itself: of skeletons the ``limits`` of the training clips; for each input of imported
    features in ``imported`` how frames were sampled, as the import's recipe says it."""
    seed: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[None]]
    """Context in which networks run: mixed precision, or nothing."""
    batches: Callable[[BatchSource, int, int], Iterator[Batch]]
    """A source in order, in batches of the given size, each in the given view."""
    backbone: Callable[[str], dict[str, Tensor]]
    """State dict of the backbone that made an input's stream; ``WeightsError`` when it cannot be found."""


class Method(Protocol):
    """What the module of a method provides; mypy checks each one against it."""

    @property
    def Options(self) -> type[Any]:
        """Frozen, keyword-only data class; every field has the paper's value as its default and a docstring."""
        ...

    def inputs(self, options: Any) -> Sequence[Input]:
        """What the method reads, decided by its options alone."""
        ...

    def resolve(self, options: Any, data: Data) -> Any:
        """The options with every ``auto`` decided."""
        ...

    def stages(self, options: Any, data: Data) -> Iterator[Stage]:
        """A generator, in the order of the paper.

        The trainer asks for the next stage, trains it (or loads it, when it is already trained), and asks again; so
        after each ``yield`` the module of that stage is trained. A stage seeds what it draws with ``reseed``."""
        ...

    def predictor(self, options: Any, data: Data) -> Predictor:
        """The untrained network that answers in the end."""
        ...


class Together(Protocol):
    """The module of a method whose runs can train in one pass."""

    def together(self, options: Any) -> Hashable | None:
        """Runs on one cache for which this is equal differ in numbers alone: seed, learning rates, momentum, weight
        decay, dropout, ``Stage.weights``. Their stages come one for one, with networks of one shape, and ``losses`` and
        ``predict`` of any of them, given another's parameters and ``reads``, are the other's. None: trained alone.
        """
        ...


def reseed(data: Data, what: str, seed: int | None = None) -> None:
    """Start torch's random numbers again for one purpose, so that they do not depend on what was done before.

    ``seed``: of a stage that has one of its own; none: the run's."""
    torch.manual_seed(zlib.crc32(f"{data.seed if seed is None else seed}/{what}".encode()))


def lengths_name(name: str) -> str:
    """Under which name a batch holds the lengths of an input whose clips differ in length."""
    return f"{name}.lengths"


def lengths_of(stream: InputStream) -> Tensor | None:
    """Lengths of a stream's clips, int64 ``[clips]`` on the CPU; None where all have one shape."""
    lengths: Tensor | None = getattr(stream, "lengths", None)
    return lengths


def run_network(module: nn.Module, batch: Batch, name: str = "x") -> Outputs:
    """Outputs of a network for one input of a batch: ``module(x)``, or ``module(x, lengths)`` where these differ."""
    lengths = batch.get(lengths_name(name))
    outputs: Outputs = module(batch[name]) if lengths is None else module(batch[name], lengths)
    return outputs


def predict_with(module: nn.Module, name: str = "x") -> Callable[[Batch], Tensor]:
    """``predict`` of a network with one input."""
    return lambda batch: run_network(module, batch, name)["logits"]
