"""``damaged.csv``: the arrays that ``verify --repair`` took out of use although their shard stands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kdcache.csv_text import read_table, table_text
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
    """The arrays that must not be used although their shard stands.

    Raises:
        StoreError: a file of this name that is no such list.
    """
    path = folder / SET_ASIDE
    try:
        rows = read_table(path, Damage._fields)
        return [Damage(r["shard"], r["stream"], int(r["row"]), r["clip_id"], r["reason"]) for r in rows]
    except FileNotFoundError:
        return []
    except ValueError as error:  # no table, or a row that is no number
        raise StoreError(
            f"{path}: not a list of damaged arrays ({error}); delete it and run `kdcache verify {folder} --repair`."
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
    text = table_text(Damage._fields, [(d.shard, d.stream, str(d.row), d.clip_id, d.reason) for d in rows])
    with atomic(folder / SET_ASIDE) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
