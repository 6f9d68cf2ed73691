"""What a run records while it trains: ``metrics.csv``, TensorBoard events, a progress bar."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcache.files import atomic

Row = dict[str, Any]


class Log:
    """The rows of a run, in ``metrics.csv`` and as TensorBoard curves."""

    def __init__(self, folder: Path, bars: bool = True) -> None:
        self.folder, self.bars = folder, bars
        self.done: list[Row] = []  # of finished stages
        self._writer: Any = None

    def show(self, rows: list[Row]) -> None:
        """Replace ``metrics.csv`` by the finished stages' rows and these."""
        every = [*self.done, *rows]
        columns = list(dict.fromkeys(["stage", "epoch", *(name for row in every for name in row)]))
        with atomic(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(every)

    @contextmanager
    def curves(self, stage: str, epochs: int) -> Iterator[None]:
        """Write TensorBoard events of a stage inside; events of epochs that are trained again are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / "tensorboard" / stage), purge_step=epochs + 1)
        try:
            yield
        finally:
            self._writer.close()

    def add(self, row: Row) -> None:
        """Add the numbers of one epoch to the curves."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def bar(self, label: str, total: int, done: int) -> Any:
        """Samples of one epoch with rate and time left; silent where there is no terminal."""
        from tqdm import tqdm

        disable = None if self.bars else True
        return tqdm(total=total, initial=done, desc=label, unit=" clips", disable=disable, leave=False, file=sys.stderr)
