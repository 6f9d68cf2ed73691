"""Recognition on cached features: pool the vectors of a clip, classify it; the first thing to try on one's own data.

One stage, by cross-entropy on labelled clips. Features of any network and of any shape will do: one vector a clip,
vectors at time steps (also of clips that differ in length), at levels of progress, at positions, or feature maps. All
of it is a baseline of this toolkit, after no paper. [reconstructed]

Means, and what is last of a clip, are computed once of each clip's own array and kept; learned attention reads maps as
averages over cells of 2×2×2 positions, as the light head of anticipation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import (
    Batch,
    Data,
    Input,
    InputStream,
    Predictor,
    Stage,
    predict_with,
    reseed,
    run_network,
)
from kdcache.methods.heads import cells
from kdcache.methods.labels import Clips, check_leak
from kdcache.methods.options import build_optimizer
from kdcache.methods.recognition_options import RecognitionOptions, with_recipe
from kdcache.methods.vector_heads import FeatureClassifier

STAGE = "classifier"
AXES = ("D", "TD", "ND", "PD", "TPD", "NTD", "NPD", "CTHW", "CHW", "NCTHW", "NCHW", "NTCHW")
"""What it reads; of a cache that holds several kinds, the first."""
ORDERED = "TN"
"""Axes along which a clip goes on: time steps, levels of progress."""


def inputs(options: RecognitionOptions) -> tuple[Input, ...]:
    """``x``: features of a clip."""
    return (Input(name="x", axes=AXES[0], also=AXES[1:], ragged=True, extract=("tsm/clip",)),)


def resolve(options: RecognitionOptions, data: Data) -> RecognitionOptions:
    """The options with what they leave open; refuses leaks, and a way of pooling that means nothing here."""
    options = replace(with_recipe(options), target=options.choose_target(data))
    axes = data.axes["x"]
    if options.pool == "attention" and len(axes) == 1:
        raise OptionError(
            "pool=attention: the stream holds one vector a clip, so there is nothing to pool: leave it out."
        )
    if options.pool == "last" and not set(axes) & set(ORDERED):
        raise OptionError(
            f"pool=last: the stream has axes {axes}, no time steps or levels, so nothing in it is last: set pool=mean."
        )
    check_leak(data, Clips(options, data).unlabelled, options.label_fraction, options.allow_leak)
    return options


def stages(options: RecognitionOptions, data: Data) -> Iterator[Stage]:
    """The one stage."""
    clips, x = Clips(options, data), _pooled(options, data)
    train = replace(clips.train(), inputs={"x": (x, clips.rows)})
    eval_sets = clips.held_out(x=x)
    reseed(data, STAGE)
    network = _network(options, data)
    if options.standardise:
        network.standardise.fit(data.batches(replace(train, fields={}), int(options.batch_size or 0), 0))
    labelled = ", ".join(f"{split} {len(source)}" for split, source in {"train": train, **eval_sets}.items())
    logger.info("labelled clips: %s; %d classes", labelled, len(data.classes[options.target]))
    optimizer, scheduler = build_optimizer(
        network.parameters(),
        optimizer=options.optimizer or "adam",
        lr=float(options.lr or 0),
        momentum=options.momentum,
        weight_decay=float(options.weight_decay or 0),
        schedule=options.schedule or "steps",
        milestones=options.milestones or (),
        gamma=options.gamma,
        plateau=options.plateau,
    )

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(run_network(network, batch)["logits"].float(), batch["y"])}

    yield Stage(
        name=STAGE,
        module=network,
        train=train,
        losses=losses,
        predict=predict_with(network),
        epochs=int(options.epochs or 0),
        batch_size=int(options.batch_size or 0),
        eval_sets=eval_sets,
        optimizer=optimizer,
        scheduler=scheduler,
        grad_clip=float(options.grad_clip or 0),
        patience=int(options.patience or 0),
    )


def predictor(options: RecognitionOptions, data: Data) -> Predictor:
    """The untrained network that answers, and what it sees."""
    network = _network(options, data)
    return Predictor(
        stage=STAGE, module=network, predict=predict_with(network), inputs={"x": _pooled(options, data)}, role="clip"
    )


def _network(options: RecognitionOptions, data: Data) -> FeatureClassifier:
    return FeatureClassifier(
        _pooled(options, data).shape[-1],
        len(data.classes[options.target]),
        attention=options.pool == "attention",
        width=options.width if options.head == "mlp" else None,
        dropout=float(options.dropout or 0),
    ).to(data.device)


def _pooled(options: RecognitionOptions, data: Data) -> InputStream:
    """The features as the network reads them: ``[D]``, for learned attention ``[T, D]``."""
    stream, axes = data.inputs["x"], data.axes["x"]
    make = {"mean": mean_vector, "last": last_vector, "attention": vectors_of}[options.pool](axes)
    return stream if make is None else stream.map(make)


Make = Callable[[Tensor], Tensor]


@cache
def vectors_of(axes: str) -> Make | None:
    """An array with these axes → its vectors ``[n, D]``, of maps those of cells; None where it holds them as they
    are."""
    if axes in ("TD", "ND", "PD"):
        return None

    def vectors(x: Tensor) -> Tensor:
        if axes.endswith("CTHW"):
            x = torch.stack([cells(one) for one in x]) if axes.startswith("N") else cells(x)
        channels = next(i for i, letter in enumerate(axes) if letter in "CD")
        return x.movedim(channels, -1).flatten(0, -2)

    return vectors


@cache
def mean_vector(axes: str) -> Make | None:
    """An array with these axes → the mean of its vectors ``[D]``; None where it is one vector."""
    return None if axes == "D" else _mean_of(axes)


@cache
def last_vector(axes: str) -> Make:
    """An array with these axes → the mean of the vectors of its last time step, of its last level ``[D]``."""
    left = "".join(letter for letter in axes if letter not in ORDERED)

    def last(x: Tensor) -> Tensor:
        for i in reversed(range(len(axes))):
            if axes[i] in ORDERED:
                x = x.select(i, -1)
        return x if left in "CD" else _mean_of(left)(x)

    return last


def _mean_of(axes: str) -> Make:
    others = tuple(i for i, letter in enumerate(axes) if letter not in "CD")
    return lambda x: x.mean(others)
