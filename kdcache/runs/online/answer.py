"""What a run answers: class probabilities of a clip, by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from kdcache.runs.prepare import manifest_rows
from kdcache.store import Cache

if TYPE_CHECKING:
    from kdcache.runs.train import Run

StrPath = str | os.PathLike[str]
Span = tuple[StrPath | None, float | None, float | None, float | None]
"""Skeleton file, start and stop in seconds, frame rate of images."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Class probabilities at one observation level."""

    level: int
    """n, from 1."""
    observed: int
    """How much of the clip has been seen, in per cent."""
    seconds: float
    """Where part n ends, on the source's clock."""
    probabilities: NDArray[np.float32]
    """Of each class, ``[C]``."""
    classes: tuple[int, ...]
    """The manifest's label of each class."""
    names: tuple[str, ...]
    """The manifest's ``class`` of each, or its label where it has none."""
    levels: int = 1
    """N, the levels at which the run answers; 1 of a run that answers once, for all of a clip."""

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """The k likeliest classes with their probabilities, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.names[c], float(self.probabilities[c])) for c in order]

    def line(self, k: int = 3) -> str:
        """The k likeliest classes as a line of a table."""
        shown = "  ".join(f"{name} {probability:.2f}" for name, probability in self.top(k))
        if self.levels == 1:
            return f"{self.seconds:.2f} s  {shown}"
        return f"{self.observed:3d} %  {self.seconds:7.2f} s  {shown}"

    def __str__(self) -> str:
        return self.line()


class LoadedRun(Protocol):
    """A run with everything in memory that it needs for an answer."""

    def answers(self, source: Path, span: Span) -> Iterator[Prediction]:
        """What it says of a clip; one clip at a time.

        Raises:
            OptionError: a skeleton file is missing or one too many.
            SourceError, ClipError: while iterating, a source that cannot be read or has no such span.
        """
        ...


def class_names(run: Run, classes: Sequence[int]) -> tuple[str, ...]:
    """The names that the manifest's column ``class`` has for the labels; the label itself where there is not one."""
    names: dict[int, str] = {}
    settings = run.settings
    rows = Cache(settings.shards).clips if settings.shards else manifest_rows(settings)
    if run.target == "label" and "class" in rows:
        known = rows[rows["label"].notna() & rows["class"].notna() & (rows["class"] != "")]
        for label, found in known.groupby("label")["class"].unique().items():
            if len(found) == 1:
                names[int(cast(int, label))] = str(found[0])
    return tuple(names.get(c, str(c)) for c in classes)
