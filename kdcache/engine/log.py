"""What a run records while it trains: ``metrics.csv``, TensorBoard events, a progress bar."""

from __future__ import annotations

import csv
import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kdcache.files import atomic, writing
from kdcache.progress import Progress, progress

Row = dict[str, Any]

SHOWN_EVERY = 2.0
"""Seconds that pass at least between two writings within a stage: epochs of small heads take less than one writing."""


class Log:
    """The rows of a run, in ``metrics.csv`` and as TensorBoard curves."""

    def __init__(self, folder: Path, bars: bool = True) -> None:
        self.folder, self.bars, self.shown_every = folder, bars, SHOWN_EVERY
        self.done: list[Row] = []  # of finished stages
        self._rows: list[Row] = []  # of the stage that is trained
        self._shown = -math.inf
        self._curves: _Curves | None = None
        self._since: tuple[float, int] | None = None  # when the stage began, and what was done then

    def show(self) -> None:
        """Replace ``metrics.csv`` by all rows that there are."""
        every = [*self.done, *self._rows]
        columns = list(dict.fromkeys(["stage", "epoch", *(name for row in every for name in row)]))
        with atomic(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(every)
        self._shown = time.monotonic()

    @contextmanager
    def curves(self, stage: str, epochs: int) -> Iterator[None]:
        """Write TensorBoard events of a stage inside; events of epochs that are trained again are dropped."""
        self._since = None
        try:
            folder = self.folder / "tensorboard" / stage
            with _told_once(), closing(_Curves(folder, epochs + 1)) as self._curves:
                yield
        finally:
            if self._rows:
                self.show()
            self._rows = []

    def add(self, rows: list[Row]) -> None:
        """Note the last of a stage's rows, one for each epoch. All are written where ``shown_every`` seconds have
        passed since the last time, and when the stage ends or breaks off."""
        self._rows = rows
        assert self._curves is not None
        self._curves.add(rows[-1])
        if time.monotonic() - self._shown >= self.shown_every:
            self.show()
            self._curves.flush()

    def bar(self, label: str, total: int, done: int, epoch: int, epochs: int) -> Progress:
        """Samples of epoch ``epoch`` (from 0), with rate and time left; where there is no terminal, of the stage."""
        before = epoch * total
        if self._since is None:
            self._since = (time.monotonic(), before + done)
        return progress(
            label,
            total,
            "clips",
            done=done,
            before=before,
            after=(epochs - epoch - 1) * total,
            since=self._since,
            shown=self.bars,
            leave=False,
            ticks=False,
        )


@contextmanager
def _told_once() -> Iterator[None]:
    """What ends TensorBoard's own thread inside is raised by the next call, and not printed by the thread as well."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class _Curves:
    """TensorBoard's events of a stage; steps from ``purge`` on that are there already are dropped."""

    def __init__(self, folder: Path, purge: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        with writing(folder):
            self._writer = SummaryWriter(str(folder), purge_step=purge)

    def add(self, row: Row) -> None:
        """One epoch."""
        with writing(self._folder):
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])

    def flush(self) -> None:
        """Write what was added."""
        with writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Write what was added, and end its thread."""
        with writing(self._folder):
            self._writer.close()
