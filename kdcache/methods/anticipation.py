"""Knowledge distillation for human action anticipation (Tran, Wang, Zhang & Hoai).

A network A that sees x_{t-τ} learns to name the action y_t that starts τ seconds later, helped by a recognition network
R that has seen x_t. With S the labelled and U the unlabelled pairs, A minimises

    Σ_{t∈S} L_c(A(x_{t-τ}), y_t)  +  Σ_{t∈U} L_c(A(x_{t-τ}), R(x_t))                       (1)
    + λ Σ_{t∈S∪U} L_d(Ā(x_{t-τ}), R̄(x_t))                                                   (2)

where Ā, R̄ are feature maps and L_d is the attentional distillation loss, equations (3) to (5), in ``kdcache.losses``.
Sums become means over a batch, so the weight of S against U is that of their numbers in it. [reconstructed]

Stages: 1. R is trained on x_t of S; 2. R is frozen, in evaluation mode, and A is trained. R is left out where the
objective does not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.methods.contract import UNLABELLED, Batch, Data, Items, Predictor, Stage, reseed
from kdcache.methods.heads import I3DHead, LightHead, cells
from kdcache.methods.labels import held_out_items, keep_fraction
from kdcache.methods.teacher import Teacher

Target = Literal["auto", "label", "verb", "noun"]

SAMPLES = "pairs"
"""Clips come in pairs: ``observed`` (x_{t-τ}) and ``action`` (x_t)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that can be set. Defaults are the paper's, or ``[reconstructed]`` where it gives none."""

    network: Literal["anticipation", "recognition", "recognition-early"] = "anticipation"
    """What is evaluated: A; R on x_t (Table 1, first row); or R applied to x_{t-τ} as it is (§3.2)."""
    target: Target = "auto"
    """Which column is y_t; ``auto``: label, or verb where there is no label (the paper: verb on EPIC-KITCHENS)."""
    tau: float | None = None
    """Anticipation time τ in seconds; needed only where a cache holds several. The paper: 1."""
    data: Literal["auto", "S", "S+now", "S+U"] = "auto"
    """Training set of A: labelled pairs; these and x_t with the same y_t (Table 3's augmentation); or labelled and
    unlabelled pairs. ``auto``: S+U where the cache has unlabelled pairs, else S."""
    label_fraction: float = 1.0
    """Share of S that keeps its labels, the same for every class and at least one each; the rest joins U (§3.4)."""
    pseudo: bool = True
    """The second sum of (1), R's prediction as the label on U. Off: U takes part in (2) alone."""
    temperature: float = 1.0
    """Softens R's prediction and A's alike in that sum; the paper has none. [reconstructed]"""
    loss_d: Literal["none", "direct", "RA", "AR", "both"] = "both"
    """L_d: none, L_direct, L̃_d(R, A), L̃_d(A, R) or their sum, equation (3)."""
    lam: float = 1.0
    """λ, the weight of L_d. [reconstructed]"""
    alpha: float | None = None
    """α of the attentional pooling; none: 1/√d, as in the paper."""
    distance: Literal["huber", "mse", "kl"] = "huber"
    """Distance inside L_d: Huber with δ = 1 (§3.2), the printed square, or KL over channels [reconstructed]."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over positions and channels; ``sum`` is as printed, ``mean`` keeps λ independent of the map. [reconstructed]"""
    layer: str = "mixed5c"
    """I3D layer whose map enters L_d: mixed5c, mixed5b, MaxPool3d_5a_2x2, mixed4f … [reconstructed]"""
    stopgrad_query: bool = False
    """No gradient through a_i where it is the query of L̃_d(A, R). [reconstructed]"""
    head: Literal["auto", "i3d", "light"] = "auto"
    """Network on the cached map: I3D from Mixed_4b on (the paper's), or a light head; ``auto``: i3d with a GPU."""
    width: int = 256
    """Channels of the light head."""
    init: Literal["auto", "checkpoint", "teacher", "random"] = "auto"
    """Weights that A starts from: the backbone's checkpoint, R's, or random. R starts from the checkpoint unless this
    is random. ``auto``: checkpoint for i3d [reconstructed], random for the light head, which has no checkpoint."""
    dropout: float = 0.5
    """Before the classifier (I3D's)."""
    lr: float = 0.01
    """Learning rate of SGD. [reconstructed; 0.001 on JHMDB]"""
    momentum: float = 0.9
    """Momentum of SGD. [reconstructed]"""
    weight_decay: float = 1e-4
    """Weight decay of SGD. [reconstructed]"""
    batch_size: int = 32
    """Samples in a batch, half of them from U where U takes part. [reconstructed]"""
    epochs: int = 30
    """Passes over S in either stage. [reconstructed; 60 on JHMDB]"""
    milestones: tuple[int, ...] = (15, 25)
    """Epochs after which the learning rate is multiplied by ``gamma``. [reconstructed]"""
    gamma: float = 0.1
    """Factor of the learning rate at milestones. [reconstructed]"""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise OptionError(f"label_fraction={self.label_fraction}: give the share of labels to keep, in (0, 1].")
        if self.head == "light" and self.layer != Options.layer:
            raise OptionError(f"layer={self.layer} is for head=i3d; the light head has one map: leave layer out.")
        if self.head == "light" and self.init == "checkpoint":
            raise OptionError("init=checkpoint is for head=i3d; the light head has none: set init=random or teacher.")
        if self.data == "S+now" and self.loss_d != "none":
            raise OptionError("data=S+now is the augmentation without distillation: set loss_d=none too.")
        if min(self.temperature, self.batch_size, self.epochs, self.lr, self.width) <= 0:
            raise OptionError("temperature, batch_size, epochs, lr and width must be positive.")


def resolve(options: Options, data: Data) -> Options:
    """Replace every ``auto`` by what it means for this cache and machine, and say so."""
    target = options.target if options.target != "auto" else next(iter(data.classes))
    if target not in data.classes:
        raise OptionError(f"target={target}: no pair has a {target}; this cache has {', '.join(data.classes)}.")
    options = replace(options, target=cast(Target, target))
    if options.head == "auto":
        gpu = data.device.type == "cuda"
        options = replace(options, head="i3d" if gpu else "light")
        data.say(f"head: {options.head} ({'there is a GPU' if gpu else 'no GPU; the paper has i3d'})")
    if options.data == "auto":
        unlabelled = len(_sets(options, data)[1])
        options = replace(options, data="S+U" if unlabelled else "S")
        data.say(f"data: {options.data} ({unlabelled} unlabelled pairs)")
    if options.init == "auto":
        options = replace(options, init="checkpoint" if options.head == "i3d" else "random")
    return options


def stages(options: Options, data: Data) -> Iterator[Stage]:
    """R on x_t of S where it is needed, then A on x_{t-τ} by (1) + (2); ``options`` are resolved."""
    data = _with_stream(options, data)
    x_early, x_now = (data.splits["train"].rows[side] for side in ("observed", "action"))
    S, U, y = _sets(options, data)
    distil = options.loss_d != "none" or options.data == "S+U"  # does the objective contain R?

    reseed(data, "recognition")
    R = _network(options, data, "checkpoint" if options.head == "i3d" and options.init != "random" else "random")
    if distil or options.init == "teacher" or options.network != "anticipation":
        side = "observed" if options.network == "recognition-early" else "action"
        items = Items({"x": (data.stream, x_now[S])}, {"y": y[S]})
        yield _stage(options, data, "recognition", R, items, _cross_entropy(R), side)
    if options.network != "anticipation":
        return

    reseed(data, "anticipation")
    A = _network(options, data, options.init)
    if options.init == "teacher":
        A.load_state_dict(R.state_dict())
    if not distil:
        rows, labels = x_early[S], y[S]
        if options.data == "S+now":
            rows, labels = torch.cat([rows, x_now[S]]), torch.cat([labels, labels])
        items = Items({"x": (data.stream, rows)}, {"y": labels})
        yield _stage(options, data, "anticipation", A, items, _cross_entropy(A), "observed")
        return

    used, extra = (torch.cat([S, U]), len(U)) if options.data == "S+U" else (S, 0)
    teacher = Teacher(R, data, x_now[used], options.batch_size, maps=options.loss_d != "none")
    inputs, fields = teacher.wants()
    items = Items({"x": (data.stream, x_early[used]), **inputs}, {"y": y[used], **fields}, extra)
    objective = _Objective(options, A, teacher)
    yield _stage(options, data, "anticipation", A, items, objective, "observed", objective.entropy)


def predictor(options: Options, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    data = _with_stream(options, data)
    stage = "anticipation" if options.network == "anticipation" else "recognition"
    side = "action" if options.network == "recognition" else "observed"
    return Predictor(stage, _network(options, data, "random"), data.stream, side)


class _Objective:
    """(1) + (2) of a batch."""

    def __init__(self, options: Options, A: nn.Module, R: Teacher) -> None:
        self.options, self.A, self.R = options, A, R

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        o, y = self.options, batch["y"]
        scores, A = self.A(batch["x"])
        R_scores, R = self.R(batch)
        labelled = (y != UNLABELLED).float()
        terms = {"L_c": (labelled * losses.l_c(scores, y.clamp(min=0))).mean()}
        if o.data == "S+U" and o.pseudo:
            terms["L_c_U"] = ((1 - labelled) * losses.l_c(scores, R_scores, o.temperature)).mean()
        if o.loss_d == "direct":
            terms["L_d"] = o.lam * losses.l_direct(A, R, o.distance, o.reduction).mean()
        elif o.loss_d != "none":
            terms["L_d"] = o.lam * losses.l_d(A, R, o.loss_d, o.alpha, o.distance, o.reduction, o.stopgrad_query).mean()
        return terms

    def entropy(self, batch: Batch) -> dict[str, Tensor]:
        """How sharp φ's weights are: entropy / log n of a_i in R, the quantity that α sets."""
        if self.options.loss_d in ("none", "direct"):
            return {}
        A, R = self.A(batch["x"])[1], self.R(batch)[1]
        a, r = losses.vectors(A), losses.vectors(R)
        return {"attention_entropy": losses.attention_entropy(a, r, self.options.alpha).mean()}


def _cross_entropy(network: nn.Module) -> Callable[[Batch], dict[str, Tensor]]:
    """The first sum of (1) alone."""
    return lambda batch: {"L_c": losses.l_c(network(batch["x"])[0], batch["y"]).mean()}


def _sets(options: Options, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """S and U as indices of the training pairs, and y_t of all of them, after ``label_fraction``."""
    y = keep_fraction(data.splits["train"].labels[options.target], options.label_fraction, data.seed)
    return (y != UNLABELLED).nonzero()[:, 0], (y == UNLABELLED).nonzero()[:, 0], y


def _with_stream(options: Options, data: Data) -> Data:
    """The cached maps as the head reads them."""
    return data if options.head == "i3d" else replace(data, stream=data.stream.reduced(cells))


def _network(options: Options, data: Data, start: str) -> nn.Module:
    """R or A on the device, from the backbone's checkpoint or from random numbers."""
    classes = len(data.classes[options.target])
    network: nn.Module
    if options.head == "i3d":
        network = I3DHead(classes, data.layer, options.layer, options.dropout)
        if start == "checkpoint":
            network.initialise(data.backbone())
    else:
        network = LightHead(data.stream.shape[0], classes, options.width, options.dropout)
    return network.to(data.device)


def _stage(
    options: Options,
    data: Data,
    name: str,
    network: nn.Module,
    train: Items,
    objective: Callable[[Batch], dict[str, Tensor]],
    side: str,
    watch: Callable[[Batch], dict[str, Tensor]] | None = None,
) -> Stage:
    """A stage with the optimiser of the options, tested on ``side`` of every labelled held-out pair."""
    o = options
    optimizer = SGD(network.parameters(), o.lr, o.momentum, weight_decay=o.weight_decay)
    return Stage(
        name=name,
        module=network,
        train=train,
        losses=objective,
        optimizer=optimizer,
        scheduler=MultiStepLR(optimizer, list(o.milestones), o.gamma),
        epochs=o.epochs,
        batch_size=o.batch_size,
        tests=held_out_items(data, side, options.target),
        grad_clip=o.grad_clip,
        watch=watch,
    )
