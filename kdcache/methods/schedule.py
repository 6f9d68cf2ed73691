"""How each stage of a method in several stages is trained: one line of text a stage, as options have it.

``"adam lr=0.001 epochs=300 milestones=25/75/150 weight_decay=4e-05"``: an optimiser and its settings. What a user
leaves out stays as the method has it: ``--set step3="epochs=100"`` changes nothing else of step 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, Literal, Self, cast

from torch import Tensor, nn

from kdcache.errors import OptionError, unknown
from kdcache.methods.contract import VALIDATION, Batch, BatchSource, Stage
from kdcache.methods.options import build_optimizer, refuse_negative, refuse_unless_positive

SEPARATOR = "/"  # of milestones; a comma separates the values of a grid


FALLS: dict[str, Any] = {"milestones": (), "decay": 1.0, "plateau": 0}
"""Ways in which a rate falls, of which a schedule has one at most, with the value that stands for none."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Optimiser, length and learning rate of one stage."""

    optimizer: Literal["adam", "sgd"]
    lr: float
    """Learning rate."""
    epochs: int
    """Passes over the training clips."""
    batch_size: int = 32
    """Clips in a batch."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    """Factor at milestones."""
    decay: float = 1.0
    """Factor of the rate after every epoch."""
    plateau: int = 0
    """Epochs without a better metric on validation clips after which the rate is multiplied by ``gamma``; 0: never."""
    momentum: float = 0.9
    """Of SGD."""
    dampening: float = 0.0
    """Of SGD's momentum."""
    weight_decay: float = 0.0
    """Weight decay."""
    eps: float = 1e-8
    """Of Adam."""

    def __post_init__(self) -> None:
        refuse_unless_positive(self, "lr", "epochs", "batch_size", "eps", "decay")
        refuse_negative(self, "gamma", "momentum", "dampening", "weight_decay", "plateau")
        numbers = (self.lr, self.gamma, self.decay, self.momentum, self.dampening, self.weight_decay, self.eps)
        if not all(map(math.isfinite, numbers)) or any(m < 1 for m in self.milestones):
            raise OptionError("lr and other numbers must be finite, and milestones count epochs from 1 on.")
        if self.dampening > 1:
            raise OptionError(f"dampening={self.dampening}: give 1 or less.")
        if (self.decay != 1) + bool(self.milestones) + bool(self.plateau) > 1:
            raise OptionError(
                "the rate falls at milestones, by decay after every epoch or on a plateau: give one of them."
            )

    @classmethod
    def read(cls, name: str, text: str, default: str = "") -> Self:
        """The schedule that a text stands for, on top of the text ``default``.

        Args:
            name: of the option, for messages.
            text: see the module.
            default: of the option.

        Raises:
            OptionError: an unknown word, a value that is no number, or one out of range.
        """
        try:
            usual, own = _words(default), _words(text)
            if any(own.get(rule, off) != off for rule, off in FALLS.items()):  # instead of the method's way to fall
                usual = {name: value for name, value in usual.items() if name not in FALLS}
            return cls(**{**usual, **own})
        except OptionError as error:
            raise OptionError(f"{name}={text!r}: {error}") from error

    def scaled(self, length: float, lr_factor: float) -> Self:
        """With ``length`` times the epochs and milestones (at least one) and ``lr_factor`` times the rate."""
        return replace(
            self,
            epochs=max(1, round(self.epochs * length)),
            milestones=tuple(dict.fromkeys(max(1, round(m * length)) for m in self.milestones)),
            decay=self.decay ** (1 / length),
            lr=self.lr * lr_factor,
        )

    def stage(
        self,
        name: str,
        module: nn.Module,
        train: BatchSource,
        losses: Callable[[Batch], dict[str, Tensor]],
        eval_sets: dict[str, BatchSource],
        parameters: Iterable[nn.Parameter],
        predict: Callable[[Batch], Tensor],
        *,
        slower: Mapping[float, Iterable[nn.Parameter]] | None = None,
        **more: Any,
    ) -> Stage:
        """The stage that trains ``parameters`` of ``module`` so; everything else is frozen.

        ``slower`` has further parameters by the factor of the learning rate at which they move; ``more`` are other
        fields of ``Stage``."""
        if self.plateau and VALIDATION not in eval_sets:
            raise OptionError(
                f"{name}: plateau={self.plateau} follows a metric on validation clips, and there are none: hold some "
                f"out (validation=0.2), or set plateau=0 and perhaps milestones in its schedule."
            )
        groups: list[dict[str, Any]] = [{"params": list(parameters)}]
        groups += [{"params": list(p), "lr": factor * self.lr} for factor, p in (slower or {}).items()]
        optimizer, scheduler = build_optimizer(
            [group for group in groups if group["params"]],
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            schedule="plateau" if self.plateau else "steps",
            plateau=self.plateau,
            cooldown=0,
            weight_decay=self.weight_decay,
            eps=self.eps,
            milestones=self.milestones,
            gamma=self.gamma,
            decay=self.decay,
            fused=True,
        )
        return Stage(
            name=name,
            module=module,
            train=train,
            losses=losses,
            predict=predict,
            epochs=self.epochs,
            batch_size=self.batch_size,
            eval_sets=eval_sets,
            optimizer=optimizer,
            scheduler=scheduler,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """What methods in several stages share: factors of all schedules, and when a stage ends early.

    A subclass has one field a stage, text with its schedule."""

    length: float = 1.0
    """Factor of every stage's epochs and milestones: 0.1 trains a tenth of the paper's schedule."""
    lr_factor: float = 1.0
    """Factor of every stage's learning rate."""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    patience: int = 0
    """Early stopping: epochs without a better one on validation clips after which a stage ends; 0 never."""

    def __post_init__(self) -> None:
        refuse_unless_positive(self, "length", "lr_factor")
        if not math.isfinite(self.length * self.lr_factor):
            raise OptionError(f"length={self.length} and lr_factor={self.lr_factor}: give finite numbers.")
        refuse_negative(self, "grad_clip", "patience")

    def schedule(self, name: str) -> Schedule:
        """That of the stage whose option is ``name``; ``OptionError`` for a text that is none."""
        default = next(f.default for f in fields(self) if f.name == name)
        assert default is not MISSING
        found = Schedule.read(name, getattr(self, name), cast(str, default))
        return found.scaled(self.length, self.lr_factor)

    @property
    def stage_fields(self) -> dict[str, Any]:
        """Fields of ``Stage`` that all stages share."""
        return {"grad_clip": self.grad_clip, "patience": self.patience}


def _words(text: str) -> dict[str, Any]:
    """Fields of ``Schedule`` by name."""
    known = [f.name for f in fields(Schedule) if f.name != "optimizer"]
    values: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            if word not in ("adam", "sgd"):
                raise OptionError(f"{word!r} is no optimiser: write adam or sgd, and settings such as lr=0.01.")
            values["optimizer"] = word
            continue
        if name not in known:
            raise unknown("setting", name, known)
        try:
            if name == "milestones":
                values[name] = tuple(int(part) for part in value.split(SEPARATOR) if part)
            else:
                values[name] = int(value) if name in ("epochs", "batch_size", "plateau") else float(value)
        except ValueError:
            whole = name in ("epochs", "batch_size", "plateau")
            form = "whole numbers such as 25/75" if name == "milestones" else "a whole number" if whole else "a number"
            raise OptionError(f"{name}={value} is not {form}.") from None
    return values
