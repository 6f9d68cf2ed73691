"""Progressive knowledge distillation for early action recognition (Tran, Balasubramanian & Hoai).

A clip is X = (x_1, …, x_N), one vector for each of N degrees of progress. A student S, which looks back only, names the
action at every n; it minimises

    L(S, y) = L_cls(S, y) + α L_ts(S, T) + β L_self(S)                                      (4)

where T is a teacher that also looks ahead, and the three terms are equations (3), (1) and (2) in ``kdcache.losses``.
Clips without a label take part in L_ts and L_self (§3.4). Each term is a mean over the clips that have it. For L_cls a
batch's sum is divided by the number of labelled clips to expect in it, not by those that happen to be there: every
labelled clip then weighs the same in an epoch, and a batch with one of them moves no further than others.
[reconstructed]

Stages: 1. T is trained by L_cls on labelled clips; 2. T is frozen, in evaluation mode, and S is trained. T is left out
where the objective does not use it. Baselines train in the place of S, on the same clips in the same order.
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
from kdcache.methods.early_baselines import Levels, Neighbours
from kdcache.methods.labels import check_leak, held_out_items, keep_fraction
from kdcache.methods.recurrent import Cell, Recurrent
from kdcache.methods.teacher import Teacher
from kdcache.metrics.early import measure_levels

Target = Literal["auto", "label", "verb", "noun"]

SAMPLES = "clips"
"""Each clip is an example: ``clip``, a vector for each degree of progress."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that can be set. Defaults are the paper's, or ``[reconstructed]`` where it gives none."""

    model: Literal["student", "teacher", "ts-lstm", "rank-lstm", "levels", "knn"] = "student"
    """What is evaluated: S (alone with alpha=0 and beta=0); T, which sees the whole clip at every level; or a baseline:
    TS-LSTM* (Wang et al. 2019), RankLSTM (Ma et al. 2016), a classifier for each level, nearest neighbours."""
    target: Target = "auto"
    """Which column is y; ``auto``: label, or verb where there is no label."""
    alpha: float = 0.5
    """α, the weight of L_ts; 0 leaves it and T out."""
    beta: float = 1.0
    """β, the weight of L_self; 0 leaves it out. The paper: 1 on SYSU and NTU, 0.5 on UCF101."""
    tau: int = 1
    """τ, by how many levels the later answer leads in L_self; below N. [reconstructed]"""
    self_detach: bool = True
    """The later answer in L_self is a constant. [reconstructed]"""
    hidden: int = 512
    """Width of S."""
    teacher_hidden: int = 256
    """Width of T in each direction."""
    cell: Literal["auto", "gru", "lstm"] = "auto"
    """Of S and T; ``auto``: gru (§2.1), lstm for the baselines that are named after it."""
    dropout: float = 0.0
    """On the input and before the classifier. [reconstructed]"""
    label_fraction: float = 1.0
    """Share of the labels to keep, the same for every class and at least one each; the rest is unlabelled (§3.4)."""
    label_seed: int = 0
    """Chooses these labels, whatever the seed of the run."""
    w_cls: float | None = None
    """Weight of L_cls; none: the share of labelled clips among those that take part, so that a clip's terms weigh the
    same whichever clip it is: 1 with all labels, 0.1 with 10 % (§3.4 lowers it, not saying how far). [reconstructed]"""
    lam_mse: float = 1.0
    """TS-LSTM*'s weight of the distance between the latents of S and T. [reconstructed]"""
    lam_mmd: float = 0.1
    """TS-LSTM*'s weight of the distance between their distributions. [reconstructed]"""
    lam_rank: float = 1.0
    """RankLSTM's weight of its ranking loss. [reconstructed]"""
    rank: Literal["score", "margin", "both"] = "both"
    """What must not fall in RankLSTM: the score of the true class, its lead over the others, both. [reconstructed]"""
    k: int = 5
    """How many neighbours vote in knn. [reconstructed]"""
    observed: Literal["mean", "concat"] = "mean"
    """What knn and levels compare of x_1 … x_n: the mean, or all of them. [reconstructed]"""
    lr: float = 0.01
    """Learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD. [reconstructed]"""
    weight_decay: float = 1e-4
    """Weight decay of SGD. [reconstructed]"""
    batch_size: int = 64
    """Clips in a batch, labelled and unlabelled as they come. [reconstructed; 32 on SYSU]"""
    epochs: int = 100
    """Passes over the training clips, labelled or not; where labelled ones alone are used, they are repeated to that
    length, so that all rows of a table take as many steps. [reconstructed]"""
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate is multiplied by ``gamma``. [reconstructed]"""
    gamma: float = 0.1
    """Factor of the learning rate at milestones. [reconstructed]"""
    grad_clip: float = 5.0
    """Largest norm of the gradient; 0 does not clip. [reconstructed]"""
    patience: int = 0
    """Epochs without a better AUC on validation clips after which a stage ends; 0 never."""
    teacher_lr: float | None = None
    """Learning rate of T; none: ``lr``."""
    teacher_epochs: int | None = None
    """Epochs of T; none: ``epochs``. Milestones are the same."""
    allow_leak: bool = False
    """Train on features of a backbone that was fitted with labels of clips that are unlabelled or held out here."""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise OptionError(f"label_fraction={self.label_fraction}: give the share of labels to keep, in (0, 1].")
        if min(self.alpha, self.beta, self.lam_mse, self.lam_mmd, self.lam_rank, self.w_cls or 0) < 0:
            raise OptionError("alpha, beta, w_cls, lam_mse, lam_mmd and lam_rank are weights: none can be negative.")
        for name in (
            "hidden",
            "teacher_hidden",
            "batch_size",
            "epochs",
            "lr",
            "k",
            "tau",
            "teacher_lr",
            "teacher_epochs",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"{name}={value}: give a positive number.")
        if not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout}: give a share below 1.")
        if self.model == "ts-lstm" and self.hidden != 2 * self.teacher_hidden:
            raise OptionError(
                f"model=ts-lstm compares latents: set hidden={2 * self.teacher_hidden}, twice teacher_hidden."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether T has to be trained."""
        return self.model in ("teacher", "ts-lstm") or (self.model == "student" and self.alpha > 0)

    @property
    def distils(self) -> bool:
        """Whether the objective has terms for which a clip needs no label."""
        return self.model == "ts-lstm" or (self.model == "student" and max(self.alpha, self.beta) > 0)


def resolve(options: Options, data: Data) -> Options:
    """Replace every ``auto`` and none by what it means for this cache, and say so; refuse leaks and a τ too long."""
    target = options.target if options.target != "auto" else next(iter(data.classes))
    if target not in data.classes:
        raise OptionError(f"target={target}: no clip has a {target}; this cache has {', '.join(data.classes)}.")
    options = replace(options, target=cast(Target, target))
    levels = data.stream.shape[0]
    if options.model == "student" and options.beta and options.tau >= levels:
        raise OptionError(f"tau={options.tau}: clips have {levels} levels; choose a lead below that, or beta=0.")
    S, U, _ = _sets(options, data)
    if not len(S):
        raise OptionError(f"target={target}: no training clip has a {target}; choose another target or label some.")
    check_leak(data, [data.splits["train"].names[i] for i in U.tolist()], options.label_fraction, options.allow_leak)
    if len(U):
        part = "take part through distillation" if options.distils else "are left out: nothing is distilled"
        data.say(f"{len(S)} clips are labelled; {len(U)} are not and {part}")
    if options.cell == "auto":
        options = replace(options, cell="lstm" if options.model in ("ts-lstm", "rank-lstm") else "gru")
    if options.w_cls is None:
        options = replace(options, w_cls=len(S) / (len(S) + len(U)) if options.distils else 1.0)
    return replace(
        options, teacher_lr=options.teacher_lr or options.lr, teacher_epochs=options.teacher_epochs or options.epochs
    )


def stages(options: Options, data: Data) -> Iterator[Stage]:
    """T on labelled clips where it is needed, then S, or a baseline, by its objective; ``options`` are resolved."""
    S, U, y = _sets(options, data)
    x = data.splits["train"].rows["clip"]
    alone = S.repeat(max(1, round((len(S) + len(U)) / len(S))))  # as many as in the other rows' epochs

    T: nn.Module | None = None
    if options.needs_teacher:
        reseed(data, "teacher")
        T = _teacher(options, data)
        yield _teacher_stage(options, data, T, Items({"x": (data.stream, x[alone])}, {"y": y[alone]}))
    if options.model == "teacher":
        return

    used = torch.cat([S, U]) if options.distils else alone
    inputs, fields = {"x": (data.stream, x[used])}, {"y": y[used]}
    teacher = None
    if T is not None:
        teacher = Teacher(T, data, x[used], options.batch_size, maps=options.model == "ts-lstm")
        more_inputs, more_fields = teacher.wants()
        inputs, fields = inputs | more_inputs, fields | more_fields
    reseed(data, "student")
    network = _student(options, data)
    share = float((y[used] != UNLABELLED).float().mean())
    objective = _Objective(options, network, teacher, share)
    epochs = 0 if options.model == "knn" else options.epochs
    yield _stage(options, data, "student", network, Items(inputs, fields), objective, options.lr, epochs)


def predictor(options: Options, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    of_teacher = options.model == "teacher"
    network = (_teacher if of_teacher else _student)(options, data)
    return Predictor("teacher" if of_teacher else "student", network, data.stream, "clip", measure_levels)


class _Objective:
    """(4) of a batch, or a baseline's objective; a share ``labelled`` of the clips has a label."""

    def __init__(self, options: Options, S: nn.Module, T: Teacher | None, labelled: float) -> None:
        self.options, self.S, self.T, self.labelled = options, S, T, labelled

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        o, y = self.options, batch["y"].clamp(min=0)
        assert o.w_cls is not None
        weight = (batch["y"] != UNLABELLED).float() / self.labelled
        S, s = self.S(batch["x"])
        terms = {"L_cls": o.w_cls * (weight * losses.l_cls(S, y)).mean()}
        if self.T is not None:
            T, t = self.T(batch)
            if o.model == "ts-lstm":
                terms["L_mse"] = o.lam_mse * losses.l_mse(s, t).mean()
                terms["L_mmd"] = o.lam_mmd * losses.l_mmd(s, t).mean()
            else:
                terms["L_ts"] = o.alpha * losses.l_ts(S, T).mean()
        if o.model == "student" and o.beta:
            terms["L_self"] = o.beta * losses.l_self(S, o.tau, o.self_detach).mean()
        if o.model == "rank-lstm":
            terms["L_rank"] = o.lam_rank * (weight * losses.l_rank(S, y, o.rank)).mean()
        return terms


def _sets(options: Options, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled and unlabelled training clips as indices, and y of all of them, after ``label_fraction``."""
    y = keep_fraction(data.splits["train"].labels[options.target], options.label_fraction, options.label_seed)
    return (y != UNLABELLED).nonzero()[:, 0], (y == UNLABELLED).nonzero()[:, 0], y


def _teacher(options: Options, data: Data) -> Recurrent:
    classes = len(data.classes[options.target])
    cell, width = cast(Cell, options.cell), options.teacher_hidden
    return Recurrent(data.stream.shape[1], classes, width, cell, options.dropout, ahead=True).to(data.device)


def _student(options: Options, data: Data) -> nn.Module:
    """S, or the baseline in its place, on the device."""
    levels, features = data.stream.shape
    classes = len(data.classes[options.target])
    network: nn.Module
    if options.model == "levels":
        network = Levels(levels, features, classes, options.observed, options.dropout)
    elif options.model == "knn":
        S, _, y = _sets(options, data)
        items = Items({"x": (data.stream, data.splits["train"].rows["clip"][S])})
        x = torch.cat([batch["x"] for batch in data.batches(items, options.batch_size, 0)])
        network = Neighbours(x, y[S], classes, options.k, options.observed)
    else:
        network = Recurrent(features, classes, options.hidden, cast(Cell, options.cell), options.dropout)
    return network.to(data.device)


def _teacher_stage(options: Options, data: Data, T: nn.Module, train: Items) -> Stage:
    """T learns L_cls; other runs with the same of these options may take it over."""
    assert options.teacher_lr is not None
    assert options.teacher_epochs is not None

    def objective(batch: Batch) -> dict[str, Tensor]:
        return {"L_cls": losses.l_cls(T(batch["x"])[0], batch["y"]).mean()}

    stage = _stage(options, data, "teacher", T, train, objective, options.teacher_lr, options.teacher_epochs)
    own = ("teacher_hidden", "teacher_lr", "teacher_epochs")
    shared = ("target", "cell", "dropout", "label_fraction", "label_seed", "batch_size", "patience")
    sgd = ("momentum", "weight_decay", "milestones", "gamma", "grad_clip")
    return replace(stage, identity={name: getattr(options, name) for name in (*own, *shared, *sgd)})


def _stage(
    options: Options,
    data: Data,
    name: str,
    network: nn.Module,
    train: Items,
    objective: Callable[[Batch], dict[str, Tensor]],
    lr: float,
    epochs: int,
) -> Stage:
    """A stage with the optimiser of the options, tested at every level of every labelled held-out clip."""
    o = options
    optimizer = SGD(network.parameters(), lr, o.momentum, weight_decay=o.weight_decay) if epochs else None
    return Stage(
        name=name,
        module=network,
        train=train,
        losses=objective,
        optimizer=optimizer,
        scheduler=MultiStepLR(optimizer, list(o.milestones), o.gamma) if optimizer else None,
        epochs=epochs,
        batch_size=o.batch_size,
        tests=held_out_items(data, "clip", options.target),
        grad_clip=o.grad_clip,
        measure=measure_levels,
        select="auc",
        patience=o.patience,
    )
