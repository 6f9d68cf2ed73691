"""Progressive knowledge distillation for early action recognition (Tran, Balasubramanian & Hoai).

A clip is X = (x_1, …, x_N), one vector for each of N levels of progress (observation ratios n/N). A causal student S
names the action at every n; it minimises

    L(S, y) = L_cls(S, y) + α L_ts(S, T) + β L_self(S)                                      (4)

where T is a bidirectional teacher, and the three terms are equations (3), (1) and (2) in ``kdcache.losses``.
Clips without a label take part in L_ts and L_self (§3.4). Each term is a mean over the clips that have it. For L_cls a
batch's sum is divided by the number of labelled clips to expect in it, not by those that happen to be there: every
labelled clip then weighs the same in an epoch, and a batch with one of them moves no further than others.
[reconstructed]

Stages: 1. T is trained by L_cls on labelled clips; 2. T is frozen, in evaluation mode, and S is trained. T is left out
where the objective does not use it. Baselines train in the place of S, on the same clips in the same order.

Time steps of a network are not levels of progress: it may have looked ahead. Where the user vouches that it has not,
``parts=N`` makes N levels of a sequence of vectors. [reconstructed]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.log import logger
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
)
from kdcache.methods.early_baselines import Levels, Neighbours
from kdcache.methods.early_options import EarlyOptions
from kdcache.methods.labels import check_leak, held_out_sets, keep_fraction, labelled_sets
from kdcache.methods.parts import means_of_parts
from kdcache.methods.recurrent import Cell, Recurrent
from kdcache.methods.search import Knob, TeacherRun
from kdcache.methods.teacher import Teacher
from kdcache.methods.vector_heads import Standardise
from kdcache.metrics.early import measure_levels

Options = EarlyOptions

_OF_TEACHER = (
    "teacher_hidden", "dropout", "label_fraction", "label_seed", "batch_size", "patience", "momentum", "weight_decay",
    "gamma", "grad_clip", "parts", "standardise",
)  # fmt: skip


def _teacher_alone(options: EarlyOptions) -> dict[str, Any] | None:
    """T as the model that is evaluated, with the cell that it has beside S."""
    if options.model == "teacher" or not options.needs_teacher:
        return None
    return {"model": "teacher", "cell": options.cell}


def _baseline(options: EarlyOptions) -> bool:
    return options.model in ("levels", "teacher") or (options.model == "student" and not options.distils)


TEACHER = TeacherRun(alone=_teacher_alone, depends=("target", "cell", *_OF_TEACHER))
KNOBS = (
    Knob("alpha", (0.2, 0.5, 1.0, 2.0), (0.1, 0.05), (5.0, 10.0), lambda o: o.model == "student" and o.alpha > 0),
    Knob("beta", (0.2, 0.5, 1.0, 2.0), (0.1, 0.05), (5.0, 10.0), lambda o: o.model == "student" and o.beta > 0),
    Knob("tau", (1, 2, 4), applies=lambda o: o.model == "student" and o.beta > 0),
    Knob("w_cls", (None, 0.1, 0.3, 1.0), (0.03, 0.01), applies=lambda o: o.distils),
    Knob("lam_mse", (0.1, 0.3, 1.0, 3.0), (0.03, 0.01), (10.0, 30.0), lambda o: o.model == "ts-lstm"),
    Knob("lam_mmd", (0.01, 0.1, 1.0), (0.001, 0.0001), (10.0, 100.0), lambda o: o.model == "ts-lstm"),
    Knob("lam_rank", (0.1, 0.3, 1.0, 3.0), (0.03, 0.01), (10.0, 30.0), lambda o: o.model == "rank-lstm"),
    Knob("dropout", (0.0, 0.25, 0.5), (), (0.75, 0.9), _baseline, of_objective=False),
    Knob("weight_decay", (1e-5, 1e-4, 1e-3), (1e-6, 0.0), (1e-2, 1e-1), _baseline, of_objective=False),
    Knob("k", (1, 3, 5, 9), (), (15, 25), lambda o: o.model == "knn", of_objective=False),
    Knob("observed", ("mean", "concat"), applies=lambda o: o.model == "knn", of_objective=False),
)
"""What is searched of each row. [reconstructed]"""


def together(options: EarlyOptions) -> EarlyOptions | None:
    """The options with everything that may differ between runs that train in one pass set to one value."""
    if options.model == "knn" or options.patience:
        return None
    own: dict[str, Any] = {name: float(getattr(options, name) > 0) for name in ("alpha", "beta")}
    own |= dict.fromkeys(("lam_mse", "lam_mmd", "lam_rank"), 1.0)
    own |= dict.fromkeys(("w_cls", "teacher_lr", "teacher_milestones", "teacher_seed"))
    return options.alike(dropout=0.0, **own)


def inputs(options: EarlyOptions) -> tuple[Input, ...]:
    """x_1 … x_N of each clip: vectors of any backbone at N levels, each from nothing after its part of the clip; with
    ``parts`` a vector for each time step, of which they are made."""
    if options.parts is not None:
        return (Input(name="x", axes="TD", ragged=True, extract=("resnet34/pool",)),)
    advice = "a network may have looked ahead; if none of its vectors knows anything of later frames, set parts=10"
    return (Input(name="x", axes="ND", extract=("tsm/clip",), settings={"levels": 10}, advice={"TD": advice}),)


def levels_of(options: EarlyOptions, data: Data) -> InputStream:
    """x_1 … x_N of each clip, ``[N, d]``."""
    stream = data.inputs["x"]
    return stream if options.parts is None else stream.map(means_of_parts(options.parts))


def resolve(options: EarlyOptions, data: Data) -> EarlyOptions:
    """Replace every ``auto`` and none by what it means for this cache; refuse leaks and a τ that is too long."""
    target = options.choose_target(data)
    options = replace(options, target=target)
    levels = levels_of(options, data).shape[0]
    if options.model == "student" and options.beta and options.tau >= levels:
        raise OptionError(f"tau={options.tau}: clips have {levels} levels; choose a lead below that, or beta=0.")
    S, U, _ = _sets(options, data)
    check_leak(data, U, options.label_fraction, options.allow_leak)
    if len(U):
        part = "take part through distillation" if options.distils else "are left out: nothing is distilled"
        logger.info("%d clips are labelled; %d are not and %s", len(S), len(U), part)
    if options.cell == "auto":
        options = replace(options, cell="lstm" if options.model in ("ts-lstm", "rank-lstm") else "gru")
    if options.w_cls is None:
        options = replace(options, w_cls=len(S) / (len(S) + len(U)) if options.distils else 1.0)
    return replace(
        options, teacher_lr=options.teacher_lr or options.lr, teacher_epochs=options.teacher_epochs or options.epochs
    )


def stages(options: EarlyOptions, data: Data) -> Iterator[Stage]:
    """T on labelled clips where it is needed, then S, or a baseline, by its objective; ``options`` are resolved."""
    S, U, y = _sets(options, data)
    stream, x = levels_of(options, data), data.splits["train"].rows["clip"]
    steps = -(-(len(S) + len(U)) // options.batch_size)  # of every row, whatever clips it uses

    T: Recurrent | None = None
    if options.needs_teacher:
        reseed(data, "teacher", options.teacher_seed)
        T = _teacher(options, data)
        _fit_input(T.input, options, data)
        yield _teacher_stage(options, data, T, BatchSource({"x": (stream, x[S])}, {"y": y[S]}, steps=steps))
    if options.model == "teacher":
        return

    used = torch.cat([S, U]) if options.distils else S
    sources, fields = {"x": (stream, x[used])}, {"y": y[used]}
    teacher = None
    if T is not None:
        network, names = T, ("logits", "latents") if options.model == "ts-lstm" else ("logits",)
        wanted = {"x_t": (stream, x[used])}
        teacher = Teacher(network, lambda batch: network(batch["x_t"]), data, wanted, options.batch_size, names)
        more_sources, more_fields = teacher.wants()
        sources, fields = sources | more_sources, fields | more_fields
    reseed(data, "student")
    student = _student(options, data)
    _fit_input(student.input, options, data)
    share = float((y[used] != UNLABELLED).float().mean())
    objective = _EarlyObjective(options, student, teacher, share)
    epochs = 0 if options.model == "knn" else options.epochs
    train = BatchSource(sources, fields, steps=steps)
    stage = _stage(options, data, "student", student, train, objective, options.lr, epochs)
    yield replace(stage, weights=objective.weights, reads=None if teacher is None else teacher.kept)


def predictor(options: EarlyOptions, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    of_teacher = options.model == "teacher"
    network = _teacher(options, data) if of_teacher else _student(options, data)
    return Predictor(
        stage="teacher" if of_teacher else "student",
        module=network,
        predict=predict_with(network),
        inputs={"x": levels_of(options, data)},
        role="clip",
        metrics_fn=measure_levels,
    )


class _EarlyObjective:
    """The terms of (4) of a batch, or of a baseline's objective; a share ``labelled`` of the clips has a label."""

    def __init__(self, options: EarlyOptions, S: nn.Module, T: Teacher | None, labelled: float) -> None:
        self.options, self.S, self.T, self.labelled = options, S, T, labelled
        assert options.w_cls is not None
        self.weights = {"L_cls": options.w_cls, "L_ts": options.alpha, "L_self": options.beta}
        self.weights |= {"L_mse": options.lam_mse, "L_mmd": options.lam_mmd, "L_rank": options.lam_rank}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        o, y = self.options, batch["y"].clamp(min=0)
        weight = (batch["y"] != UNLABELLED).float() / self.labelled
        S = self.S(batch["x"])
        terms = {"L_cls": (weight * losses.l_cls(S["logits"], y)).mean()}
        if self.T is not None:
            T = self.T(batch)
            if o.model == "ts-lstm":
                terms["L_mse"] = losses.l_mse(S["latents"], T["latents"]).mean()
                terms["L_mmd"] = losses.l_mmd(S["latents"], T["latents"]).mean()
            else:
                terms["L_ts"] = losses.l_ts(S["logits"], T["logits"]).mean()
        if o.model == "student" and o.beta:
            terms["L_self"] = losses.l_self(S["logits"], o.tau, o.self_detach).mean()
        if o.model == "rank-lstm":
            terms["L_rank"] = (weight * losses.l_rank(S["logits"], y, o.rank)).mean()
        return terms


def _sets(options: EarlyOptions, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled and unlabelled training clips as indices, and y of all of them, after ``label_fraction``."""
    y = keep_fraction(data.splits["train"].labels[options.target], options.label_fraction, options.label_seed)
    return *labelled_sets(y), y


def _teacher(options: EarlyOptions, data: Data) -> Recurrent:
    classes = len(data.classes[options.target])
    cell, width = cast(Cell, options.cell), options.teacher_hidden
    features = levels_of(options, data).shape[1]
    network = Recurrent(features, classes, width, cell, options.dropout, bidirectional=True)
    network.input = _input(options, data)
    return network.to(data.device)


def _input(options: EarlyOptions, data: Data) -> nn.Module:
    """What levels pass before a network; ``_fit_input`` takes its numbers from the training clips."""
    return Standardise(levels_of(options, data).shape[1]) if options.standardise else nn.Identity()


def _fit_input(network: nn.Module, options: EarlyOptions, data: Data) -> None:
    if isinstance(network, Standardise):
        network.fit(_in_order(options, data, data.splits["train"].rows["clip"]))


def _in_order(options: EarlyOptions, data: Data, clips: Tensor) -> Iterator[Batch]:
    """x of these clips, a batch after the other."""
    return data.batches(BatchSource({"x": (levels_of(options, data), clips)}), options.batch_size, 0)


def _student(options: EarlyOptions, data: Data) -> Recurrent | Levels | Neighbours:
    """S, or the baseline in its place, on the device."""
    levels, features = levels_of(options, data).shape
    classes = len(data.classes[options.target])
    network: Recurrent | Levels | Neighbours
    if options.model == "levels":
        network = Levels(levels, features, classes, options.observed, options.dropout)
    elif options.model == "knn":
        S, _, y = _sets(options, data)
        clips = data.splits["train"].rows["clip"][S]
        x = torch.cat([batch["x"] for batch in _in_order(options, data, clips)])
        network = Neighbours(x, y[S], classes, options.k, options.observed)
    else:
        network = Recurrent(features, classes, options.hidden, cast(Cell, options.cell), options.dropout)
    network.input = _input(options, data)
    return network.to(data.device)


def _teacher_stage(options: EarlyOptions, data: Data, T: nn.Module, train: BatchSource) -> Stage:
    """T learns L_cls; other runs with the same of these options may take it over."""
    assert options.teacher_lr is not None
    assert options.teacher_epochs is not None

    def objective(batch: Batch) -> dict[str, Tensor]:
        return {"L_cls": losses.l_cls(T(batch["x"])["logits"], batch["y"]).mean()}

    falls = options.milestones if options.teacher_milestones is None else options.teacher_milestones
    own = replace(options, milestones=falls)
    stage = _stage(own, data, "teacher", T, train, objective, options.teacher_lr, options.teacher_epochs)
    named = ("teacher_lr", "teacher_epochs", "target", "cell", "milestones", *_OF_TEACHER)
    absent = {"parts": None, "standardise": False}  # keys of before do not name them
    key = {name: getattr(own, name) for name in named}
    key = {name: value for name, value in key.items() if (name, value) not in absent.items()}
    return replace(stage, share_key=key, seed=options.teacher_seed)


def _stage(
    options: EarlyOptions,
    data: Data,
    name: str,
    network: nn.Module,
    train: BatchSource,
    objective: Callable[[Batch], dict[str, Tensor]],
    lr: float,
    epochs: int,
) -> Stage:
    """A stage with the optimiser of the options, scored at every level of every labelled held-out clip."""
    eval_sets = held_out_sets(data, options.target, {"x": levels_of(options, data)}, "clip")
    of_levels: dict[str, Any] = {"metrics_fn": measure_levels, "monitor": "auc"}
    return options.stage(name, network, train, objective, eval_sets, lr=lr, epochs=epochs, **of_levels)
