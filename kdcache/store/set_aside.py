"""``damaged.csv``: the arrays that ``verify --repair`` took out of use although their shard stands."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import StoreError
from kdcache.files import atomic

SET_ASIDE = "damaged.csv"


class Damage(NamedTuple):
    """One array that is not what was written. ``damaged.csv`` lists those that ``verify --repair`` set aside."""

    shard: str
    stream: str
    row: int
    clip_id: str
    reason: str

    @property
    def place(self) -> tuple[str, str, int]:
        """Shard, stream and row."""
        return self.shard, self.stream, self.row


def load_set_aside(folder: Path) -> list[Damage]:
    """The arrays that must not be used although their shard stands."""
    path = folder / SET_ASIDE
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [Damage(r["shard"], r["stream"], int(r["row"]), r["clip_id"], r["reason"]) for r in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path}: not a list of damaged arrays; delete it and run `kdcache verify {folder} --repair`."
        ) from error


def places_set_aside(folder: Path) -> set[tuple[str, str, int]]:
    """(shard, stream, row) of the arrays that must not be used."""
    return {damage.place for damage in load_set_aside(folder)}


def save_set_aside(folder: Path, damages: Iterable[Damage]) -> None:
    """Replace the list; an empty one removes the file."""
    rows = sorted(set(damages))
    if not rows:
        (folder / SET_ASIDE).unlink(missing_ok=True)
        return
    with atomic(folder / SET_ASIDE) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Damage._fields)
        writer.writerows(rows)
