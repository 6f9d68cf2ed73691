"""The list of clips that could not be extracted: ``failures.csv`` beside the shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from kdcache.files import atomic

FILE = "failures.csv"


class Failure(NamedTuple):
    """One clip that failed: where, at which stage (open, sample, decode, motion, backbone, worker), and why."""

    clip_id: str
    source: str
    stage: str
    reason: str
    key: str = ""  # key of the first missing stream: the failure stands while source, span and recipe are the same


def load_failures(out: Path) -> list[Failure]:
    """The failures listed in a cache folder; none when there is no list."""
    path = out / FILE
    if not path.exists():
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table = table.reindex(columns=list(Failure._fields), fill_value="")  # a list written by hand may have none
    return [Failure(*row) for row in table.itertuples(index=False, name=None)]


def save_failures(out: Path, failures: Iterable[Failure]) -> None:
    """Replace the list, one row a clip (the latest failure of each); an empty list removes the file."""
    rows = {failure.clip_id: failure for failure in failures}
    path = out / FILE
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as temporary:
        pd.DataFrame(sorted(rows.values()), columns=list(Failure._fields)).to_csv(temporary, index=False)
