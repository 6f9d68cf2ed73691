"""Knowledge distillation for human action anticipation (Tran, Wang, Zhang & Hoai).

A network A that sees x_{t-τ} learns to name the action y_t that starts τ seconds later, helped by a recognition network
R that has seen x_t. With S the labelled and U the unlabelled pairs, A minimises

    Σ_{t∈S} L_c(A(x_{t-τ}), y_t)  +  Σ_{t∈U} L_c(A(x_{t-τ}), R(x_t))                       (1)
    + λ Σ_{t∈S∪U} L_d(Ā(x_{t-τ}), R̄(x_t))                                                   (2)

where Ā, R̄ are feature maps and L_d is the attentional distillation loss, equations (3) to (5), in ``kdcache.losses``.
Sums become means over a batch, so the weight of S against U is that of their numbers in it. [reconstructed]

An epoch of every row has as many steps as one pass over the labelled pairs of the manifest, whatever part of them is
labelled here and whatever joins them, so that all rows of a table take the same number of optimiser steps.

Stages: 1. R is trained on x_t of S; 2. R is frozen, in evaluation mode, and A is trained. R is left out where the
objective does not use it.

On a sequence of vectors, one a time step, as features computed elsewhere often are, the positions of a feature map are
the time steps, and the head is a light one; sequences may differ in length. [reconstructed: the paper has maps alone]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.anticipation_options import AnticipationOptions
from kdcache.methods.contract import (
    UNLABELLED,
    Batch,
    BatchSource,
    Data,
    Input,
    InputStream,
    Predictor,
    Stage,
    predict_with,
    reseed,
    run_network,
)
from kdcache.methods.heads import I3DHead, LightHead, cells, initialise
from kdcache.methods.labels import check_leak, held_out_sets, keep_fraction, labelled_sets
from kdcache.methods.search import Knob, TeacherRun
from kdcache.methods.teacher import Teacher
from kdcache.methods.vector_heads import VectorHead

Options = AnticipationOptions

_OF_TEACHER = (
    "label_fraction", "label_seed", "head", "width", "dropout", "batch_size", "patience", "momentum", "weight_decay",
    "gamma", "grad_clip",
)  # fmt: skip


def _teacher_alone(options: AnticipationOptions) -> dict[str, Any] | None:
    """R as the network that is evaluated, on x_t."""
    if not options.may_distil and not (options.network == "anticipation" and options.init == "teacher"):
        return None
    return {"network": "recognition", "loss_d": "none", "data": "S"}


def _distils(options: AnticipationOptions) -> bool:
    return options.network == "anticipation" and options.loss_d != "none"


def _pseudo(options: AnticipationOptions) -> bool:
    of_u = options.data == "S+U" and options.pseudo
    return options.network == "anticipation" and (of_u or options.soft_targets)


TEACHER = TeacherRun(alone=_teacher_alone, depends=("target", "layer", "init", *_OF_TEACHER))
KNOBS = (
    Knob("lam", (0.1, 1.0, 10.0, 100.0), (0.01, 0.001), (1e3, 1e4), lambda o: _distils(o) and o.reduction == "mean"),
    Knob("lam", (1e-6, 1e-5, 1e-4, 1e-3), (1e-7, 1e-8), (1e-2, 0.1), lambda o: _distils(o) and o.reduction == "sum"),
    Knob("temperature", (1.0, 2.0, 4.0), (0.5, 0.25), (8.0, 16.0), _pseudo),
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
    Knob("weight_decay", (1e-5, 1e-4, 1e-3), (1e-6, 0.0), (1e-2, 1e-1), of_objective=False),
)
"""What is searched of each row; sums over positions and channels are 10⁴ to 10⁵ times their means. [reconstructed]"""


def together(options: AnticipationOptions) -> AnticipationOptions | None:
    """The options with everything that may differ between runs that train in one pass set to one value; I3D's last
    blocks are too large for several of them."""
    if options.head != "light" or options.patience:
        return None
    return options.alike(lam=1.0, dropout=0.0, **dict.fromkeys(("teacher_lr", "teacher_milestones", "teacher_seed")))


VECTORS = "TD"
"""Axes of a sequence of vectors, in the place of a map."""


def inputs(options: AnticipationOptions) -> tuple[Input, ...]:
    """``x``, the map (or vectors) of what is evaluated on: x_{t-τ}, or x_t for R; and ``x_t`` for training where R is
    trained."""

    def maps(name: str, role: str, when: Literal["always", "train"] = "always") -> Input:
        example = ("i3d-rgb/mixed4a",)
        return Input(name=name, axes="CTHW", also=(VECTORS,), ragged=True, role=role, when=when, extract=example)

    if options.network == "recognition":
        return (maps("x", "action"),)
    early, now = maps("x", "observed"), maps("x_t", "action", "train")
    needs_now = options.network == "recognition-early" or options.init == "teacher" or options.data == "S+now"
    return (early, now) if needs_now or options.may_distil else (early,)


def resolve(options: AnticipationOptions, data: Data) -> AnticipationOptions:
    """Replace every ``auto`` by what it means for this cache and machine, and log it."""
    options = replace(options, target=options.choose_target(data))
    check_leak(data, _sets(options, data)[1], options.label_fraction, options.allow_leak)
    of_vectors = data.axes.get("x") == VECTORS
    if of_vectors and options.head == "i3d":
        raise OptionError(
            "head=i3d reads feature maps, and the stream holds a vector for each time step: set head=light."
        )
    if "x" in data.ragged and options.loss_d == "direct":
        raise OptionError(
            "loss_d=direct compares maps position by position, and these clips differ in length: set loss_d=both."
        )
    if options.head == "auto" and of_vectors:
        options = replace(options, head="light")
    if options.head == "auto":
        gpu = data.device.type == "cuda"
        options = replace(options, head="i3d" if gpu else "light")
        logger.info("head: %s (%s)", options.head, "there is a GPU" if gpu else "no GPU; the paper has i3d")
    if options.data == "auto":
        unlabelled = len(_sets(options, data)[1])
        options = replace(options, data="S+U" if unlabelled else "S")
        logger.info("data: %s (%d unlabelled pairs)", options.data, unlabelled)
    if options.init == "auto":
        options = replace(options, init="checkpoint" if options.head == "i3d" else "random")
    return options


def stages(options: AnticipationOptions, data: Data) -> Iterator[Stage]:
    """R on x_t of S where it is needed, then A on x_{t-τ} by (1) + (2); ``options`` are resolved."""
    train = data.splits["train"].rows
    S, U, y = _sets(options, data)
    distil = options.loss_d != "none" or options.soft_targets or options.data == "S+U"  # does the objective contain R?

    reseed(data, "recognition", options.teacher_seed)
    R = _network(options, data, _start_of_teacher(options))
    if distil or options.init == "teacher" or options.network != "anticipation":
        now = "x" if options.network == "recognition" else "x_t"
        source = _source(options, data, {"x": (_maps(options, data, now), train["action"][S])}, {"y": y[S]})
        role = "observed" if options.network == "recognition-early" else "action"
        yield _teacher_stage(options, data, R, source, role)
    if options.network != "anticipation":
        return

    reseed(data, "anticipation")
    A = _network(options, data, options.init)
    if options.init == "teacher":
        A.load_state_dict(R.state_dict())
    x = _maps(options, data, "x")
    if not distil:
        rows, labels = train["observed"][S], y[S]
        if options.data == "S+now":  # x_t are of the stream of x: ``inputs`` gives both one pattern
            rows, labels = torch.cat([rows, train["action"][S]]), torch.cat([labels, labels])
        source = _source(options, data, {"x": (x, rows)}, {"y": labels})
        yield _stage(options, data, "anticipation", A, source, _cross_entropy(A), "observed")
        return

    used, num_unlabeled = (torch.cat([S, U]), len(U)) if options.data == "S+U" else (S, 0)
    names: tuple[str, ...] = ("logits", "map") if options.loss_d != "none" else ("logits",)
    ragged = options.loss_d != "none" and "x_t" in data.ragged
    wanted = {"x_t": (_maps(options, data, "x_t"), train["action"][used])}
    teacher = Teacher(
        R,
        lambda batch: run_network(R, batch, "x_t"),
        data,
        wanted,
        options.batch_size,
        (*names, "own") if ragged else names,
        one_shape=not ragged,
    )
    sources, fields = teacher.wants()
    sources, fields = {"x": (x, train["observed"][used]), **sources}, {"y": y[used], **fields}
    source = _source(options, data, sources, fields, num_unlabeled)
    objective = _AnticipationObjective(options, A, teacher)
    stage = _stage(options, data, "anticipation", A, source, objective, "observed", objective.entropy)
    yield replace(stage, weights={"L_d": options.lam}, reads=teacher.kept)


def predictor(options: AnticipationOptions, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    network = _network(options, data, "random")
    return Predictor(
        stage="anticipation" if options.network == "anticipation" else "recognition",
        module=network,
        predict=predict_with(network),
        inputs={"x": _maps(options, data, "x")},
        role=data.roles["x"],
    )


class _AnticipationObjective:
    """(1) + (2) of a batch, L_d without its weight λ."""

    def __init__(self, options: AnticipationOptions, A: nn.Module, R: Teacher) -> None:
        self.options, self.A, self.R = options, A, R

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        o, y = self.options, batch["y"]
        A, R = run_network(self.A, batch), self.R(batch)
        labelled = (y != UNLABELLED).float()
        if o.soft_targets:
            terms = {"L_c": (labelled * losses.l_c(A["logits"], R["logits"], o.temperature)).mean()}
        else:
            terms = {"L_c": (labelled * losses.l_c(A["logits"], y.clamp(min=0))).mean()}
        if o.data == "S+U" and o.pseudo:
            terms["L_c_U"] = ((1 - labelled) * losses.l_c(A["logits"], R["logits"], o.temperature)).mean()
        if o.loss_d == "direct":
            terms["L_d"] = losses.l_direct(A["map"], R["map"], o.distance, o.reduction).mean()
        elif o.loss_d != "none":
            settings = (o.loss_d, o.alpha, o.distance, o.reduction, o.stopgrad_query)
            distance = losses.l_d(A["map"], R["map"], *settings, (A.get("own"), R.get("own")))
            terms["L_d"] = distance.mean()
        return terms

    def entropy(self, batch: Batch) -> dict[str, Tensor]:
        """How sharp φ's weights are: entropy / log n of a_i in R, the quantity that α sets."""
        if self.options.loss_d in ("none", "direct"):
            return {}
        A, R = run_network(self.A, batch), self.R(batch)
        a, r = losses.vectors(A["map"]), losses.vectors(R["map"])
        entropy = losses.attention_entropy(a, r, self.options.alpha, A.get("own"), R.get("own"))
        return {"attention_entropy": entropy.mean()}


def _cross_entropy(network: nn.Module) -> Callable[[Batch], dict[str, Tensor]]:
    """The first sum of (1) alone."""
    return lambda batch: {"L_c": losses.l_c(run_network(network, batch)["logits"], batch["y"]).mean()}


def _sets(options: AnticipationOptions, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """S and U as indices of the training pairs, and y_t of all of them, after ``label_fraction``."""
    y = keep_fraction(data.splits["train"].labels[options.target], options.label_fraction, options.label_seed)
    return *labelled_sets(y), y


def _maps(options: AnticipationOptions, data: Data, name: str) -> InputStream:
    """The cached maps of an input as the head reads them; vectors as they are."""
    stream = data.inputs[name]
    return stream if options.head == "i3d" or data.axes.get(name) == VECTORS else stream.map(cells)


def _source(
    options: AnticipationOptions,
    data: Data,
    inputs: dict[str, tuple[InputStream, Tensor]],
    fields: dict[str, Tensor],
    num_unlabeled: int = 0,
) -> BatchSource:
    """Training examples in passes of as many steps as all labelled pairs make."""
    labelled = int((data.splits["train"].labels[options.target] != UNLABELLED).sum())
    return BatchSource(inputs, fields, num_unlabeled, steps=-(-labelled // options.batch_size))


def _network(options: AnticipationOptions, data: Data, start: str) -> nn.Module:
    """R or A on the device, from the backbone's checkpoint or from random numbers."""
    classes = len(data.classes[options.target])
    network: nn.Module
    if options.head == "i3d":
        network = I3DHead(classes, data.layers["x"], options.layer, options.dropout)
        if start == "checkpoint":
            initialise(network, data.backbone("x"))
    elif data.axes.get("x") == VECTORS:
        network = VectorHead(data.inputs["x"].shape[1], classes, options.width, options.dropout)
    else:
        network = LightHead(data.inputs["x"].shape[0], classes, options.width, options.dropout)
    return network.to(data.device)


def _start_of_teacher(options: AnticipationOptions) -> str:
    """What R starts from."""
    return "checkpoint" if options.head == "i3d" and options.init != "random" else "random"


def _teacher_stage(options: AnticipationOptions, data: Data, R: nn.Module, train: BatchSource, role: str) -> Stage:
    """R learns L_c; other runs with the same of these options may take it over."""
    lr, epochs, falls = options.teacher_lr, options.teacher_epochs, options.teacher_milestones
    own = replace(
        options,
        lr=options.lr if lr is None else lr,
        epochs=options.epochs if epochs is None else epochs,
        milestones=options.milestones if falls is None else falls,
    )
    stage = _stage(own, data, "recognition", R, train, _cross_entropy(R), role)
    key = {name: getattr(own, name) for name in ("target", "layer", "lr", "epochs", "milestones", *_OF_TEACHER)}
    key |= {"start": _start_of_teacher(options), "role": role}  # the best epoch is that of the clips in this role
    return replace(stage, share_key=key, seed=options.teacher_seed)


def _stage(
    options: AnticipationOptions,
    data: Data,
    name: str,
    network: nn.Module,
    train: BatchSource,
    objective: Callable[[Batch], dict[str, Tensor]],
    role: str,
    diagnostics: Callable[[Batch], dict[str, Tensor]] | None = None,
) -> Stage:
    """A stage with the optimiser of the options, scored on the clip in ``role`` of every labelled held-out pair."""
    seen = "x" if data.roles["x"] == role else "x_t"
    eval_sets = held_out_sets(data, options.target, {"x": _maps(options, data, seen)}, role)
    return options.stage(name, network, train, objective, eval_sets, diagnostics=diagnostics)
