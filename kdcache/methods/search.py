"""What a comparison may search of a method beside learning rate and length, as the method declares it.

A method's module may have two constants: ``KNOBS``, options with the values that are tried, and ``TEACHER``, how its
teacher is trained alone. Methods of one's own may leave both out: learning rate and length are then all that is
searched, and a teacher is trained with its student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Knob:
    """One option and the values that are tried of it."""

    option: str
    values: tuple[Any, ...]
    """Numbers in ascending order; None among them stands for the default that a method works out by itself. Other
    values have no order, and so no edge."""
    below: tuple[float, ...] = ()
    """What is tried where the smallest was chosen, the nearest first; none: nothing smaller makes sense."""
    above: tuple[float, ...] = ()
    """What is tried where the largest was chosen, the nearest first."""
    applies: Callable[[Any], bool] = lambda options: True
    """Whether it means anything to resolved options."""
    of_objective: bool = True
    """A part of what a row's objective adds. Off: the baseline's own, which is searched for rows that add nothing."""


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """How the first stage of a method, its teacher, is trained and scored by itself."""

    alone: Callable[[Any], Mapping[str, Any] | None]
    """Resolved options of a run → what has to be set for a run whose result is its teacher; None where it has none."""
    depends: tuple[str, ...]
    """Options that decide the teacher's result, beside the three below: rows that are equal in them share one."""
    lr: str = "teacher_lr"
    epochs: str = "teacher_epochs"
    milestones: str = "teacher_milestones"
    seed: str = "teacher_seed"


class Searched(Protocol):
    """The module of a method that declares what is searched."""

    @property
    def KNOBS(self) -> tuple[Knob, ...]:
        """Options that are searched."""
        ...


class Taught(Protocol):
    """The module of a method whose first stage is a teacher."""

    @property
    def TEACHER(self) -> TeacherRun:
        """How it is trained alone."""
        ...


def of_row(knobs: tuple[Knob, ...], options: Any, own: frozenset[str]) -> tuple[Knob, ...]:
    """The knobs of a row: those that its objective adds; of a row without, the baseline's own.

    Args:
        knobs: of the method.
        options: of the row, resolved.
        own: options that the row itself sets, which stay as they are.
    """
    meant = [knob for knob in knobs if knob.applies(options)]
    added = any(knob.of_objective for knob in meant)
    return tuple(knob for knob in meant if knob.of_objective == added and knob.option not in own)
