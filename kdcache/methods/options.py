"""Groups of options that methods share: how a stage is trained, which labels are used; and the one optimiser
builder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, MultiStepLR, ReduceLROnPlateau

from kdcache.errors import OptionError
from kdcache.methods.contract import UNLABELLED, Batch, BatchSource, Data, Stage, predict_with

Target = Literal["auto", "label", "verb", "noun"]
Parameters = Iterable[nn.Parameter] | Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a stage is trained: SGD with a learning rate that falls at milestones."""

    lr: float = 0.01
    """Learning rate of SGD. [reconstructed]"""
    momentum: float = 0.9
    """Momentum of SGD. [reconstructed]"""
    weight_decay: float = 1e-4
    """Weight decay of SGD. [reconstructed]"""
    batch_size: int = 32
    """Examples in a batch. [reconstructed]"""
    epochs: int = 30
    """Passes over the training examples. [reconstructed]"""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by ``gamma``. [reconstructed]"""
    gamma: float = 0.1
    """Factor of the learning rate at milestones. [reconstructed]"""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    patience: int = 0
    """Early stopping: epochs without a better one on validation clips after which a stage ends; 0 never.
    [reconstructed: no paper mentions it]"""

    def __post_init__(self) -> None:
        refuse_unless_positive(self, "batch_size", "epochs", "lr")
        refuse_unless_share(self, "momentum")
        refuse_negative(self, "weight_decay", "gamma", "grad_clip", "patience", "milestones")

    def alike(self, **own: Any) -> Self:
        """With one value for the numbers of the optimiser, in which runs that train in one pass may differ, and for
        those of a method's ``own``."""
        values: dict[str, Any] = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "gamma": 0.0, "milestones": ()}
        return replace(self, **values, **own)

    def optimise(self, parameters: Parameters, lr: float | None = None) -> tuple[Optimizer, LRScheduler]:
        """Optimiser and schedule of ``parameters`` (or groups of them) at ``lr``, by default that of the options."""
        return build_optimizer(
            parameters,
            lr=self.lr if lr is None else lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            milestones=self.milestones,
            gamma=self.gamma,
        )

    def stage(
        self,
        name: str,
        module: nn.Module,
        train: BatchSource,
        losses: Callable[[Batch], dict[str, Tensor]],
        eval_sets: dict[str, BatchSource],
        *,
        parameters: Parameters | None = None,
        lr: float | None = None,
        epochs: int | None = None,
        **more: Any,
    ) -> Stage:
        """A stage with the optimiser and the schedule of the options.

        Args:
            name: of the stage.
            module: what trains; it answers ``{"logits": …}`` to the input ``x`` unless ``predict`` is given.
            train: what a pass reads.
            losses: terms of the objective.
            eval_sets: what is scored after every epoch.
            parameters: those that are moved; none: all of the module's, the rest is frozen.
            lr: none: that of the options.
            epochs: none: those of the options; 0: nothing is trained.
            more: other fields of ``Stage``.
        """
        epochs = self.epochs if epochs is None else epochs
        moved = module.parameters() if parameters is None else parameters
        optimizer, scheduler = self.optimise(moved, lr) if epochs else (None, None)
        fields: dict[str, Any] = {"predict": predict_with(module)} | more
        return Stage(
            name=name,
            module=module,
            train=train,
            losses=losses,
            epochs=epochs,
            batch_size=self.batch_size,
            eval_sets=eval_sets,
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=self.grad_clip,
            patience=self.patience,
            **fields,
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Which labels a method learns from."""

    target: Target = "auto"
    """Which column holds the classes; ``auto``: label, or verb where there is no label."""
    label_fraction: float = 1.0
    """Share of the training labels to keep, the same for every class and at least one each."""
    label_seed: int = 0
    """Chooses these labels by their place among the examples, whatever the seed of the run. ``fit`` and ``train
    early`` keep the same of one manifest where all its clips can be read."""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise OptionError(f"label_fraction={self.label_fraction}: give the share of labels to keep, in (0, 1].")
        refuse_negative(self, "label_seed")

    def choose_target(self, data: Data) -> Literal["label", "verb", "noun"]:
        """The column; ``OptionError`` where the data has none of that name."""
        known = next(iter(data.classes)) if self.target == "auto" else self.target
        if known not in data.classes:
            raise OptionError(f"target={known}: no example has a {known}; there is {', '.join(data.classes)}.")
        if not bool((data.splits["train"].labels[known] != UNLABELLED).any()):
            raise OptionError(f"target={known}: no training clip has a {known}; choose another target or label some.")
        return cast(Literal["label", "verb", "noun"], known)


@dataclass(frozen=True, kw_only=True)
class LeakOptions(LabelOptions):
    """Labels, for methods that train on the features of a backbone, which may have seen more of them."""

    allow_leak: bool = False
    """Train on features of a backbone that was fitted with labels of clips that are unlabelled or held out here."""


def build_optimizer(
    parameters: Parameters,
    *,
    optimizer: Literal["sgd", "adam"] = "sgd",
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    schedule: Literal["steps", "plateau"] = "steps",
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    plateau: int = 2,
    cooldown: int | None = None,
    eps: float = 1e-8,
    decay: float = 1.0,
    fused: bool = False,
) -> tuple[Optimizer, LRScheduler]:
    """The optimiser and the schedule of a stage.

    ``steps`` multiplies the rate by ``gamma`` after ``milestones`` (epochs), or by ``decay`` after every epoch where
    that is not 1; ``plateau`` after ``plateau`` epochs without a better monitored metric, and waits ``cooldown`` epochs
    (none: as many) after each fall. ``fused`` steps of large networks take a fifth to a tenth of the time, with other
    last bits."""
    made: Optimizer
    if optimizer == "adam":
        made = Adam(parameters, lr, eps=eps, weight_decay=weight_decay, fused=fused)
    else:
        made = SGD(parameters, lr, momentum, dampening, weight_decay, fused=fused)
    if schedule == "plateau":
        return made, ReduceLROnPlateau(made, "max", gamma, plateau, cooldown=plateau if cooldown is None else cooldown)
    if decay != 1:
        return made, ExponentialLR(made, decay)
    return made, MultiStepLR(made, list(milestones), gamma)


def refuse_unless_positive(options: Any, *names: str) -> None:
    """``OptionError`` for an option that is set and not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"{name}={value}: give a positive number.")


def refuse_negative(options: Any, *names: str) -> None:
    """``OptionError`` for an option that is set and below 0, or of several numbers one that is."""
    for name in names:
        value = getattr(options, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not each >= 0:
                raise OptionError(f"{name}={each}: it must not be negative.")


def refuse_unless_share(options: Any, *names: str) -> None:
    """``OptionError`` for an option that is set and not a share from 0 to below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value < 1:
            raise OptionError(f"{name}={value}: give a share from 0 to below 1.")


def refuse_meaningless(options: Any, *rules: tuple[bool, str, tuple[str, ...]]) -> None:
    """``OptionError`` for an option that differs from its default where a rule applies: (applies, why, names)."""
    for applies, why, names in rules:
        for name in names if applies else ():
            value = getattr(options, name)
            if value != type(options).__dataclass_fields__[name].default:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise OptionError(f"{name}={shown} means nothing with {why}: leave it out.")
