"""The list of clips that could not be extracted: ``failures.csv`` beside the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kdcache.csv_text import BrokenTable, check_of, read_table, table_text
from kdcache.errors import StoreError
from kdcache.files import atomic
from kdcache.log import logger
from kdcache.store.lock import locked

FILE = "failures.csv"
_CHECK = "check"
MOST_REASON = 10_000  # characters of a reason that are kept


class Failure(NamedTuple):
    """One clip that failed: where, at which stage (open, sample, decode, motion, backbone, worker), and why."""

    clip_id: str
    source: str
    stage: str
    reason: str
    key: str = ""  # key of the first missing stream: the failure stands while source, span and recipe are the same
    streams: str = ""  # those that were to be computed, with spaces between; empty in lists of version 0.1

    def concerns(self, streams: Iterable[str]) -> bool:
        """Whether what failed was one of these streams, as far as the list says."""
        return not self.streams or not set(streams).isdisjoint(self.streams.split())


def load_failures(out: Path) -> list[Failure]:
    """The failures listed in a cache folder; none when there is no list.

    A row that is not as it was written is left out, with a warning; one without its check, as of version 0.1 or of a
    list made by hand, is taken as it is.

    Raises:
        StoreError: a file of this name that is no such list.
    """
    path = out / FILE
    try:
        rows = read_table(path, ["clip_id"])  # a list written by hand may have no other column
    except FileNotFoundError:
        return []
    except BrokenTable as error:
        raise StoreError(
            f"{path}: {error}, so it is no list of failed clips; delete it, and the next `kdcache extract` tries its "
            "clips again."
        ) from error
    failures = [Failure(*(row.get(name, "") for name in Failure._fields)) for row in rows]
    checks = [row.get(_CHECK, "") for row in rows]
    kept = [f for f, check in zip(failures, checks, strict=True) if not check or check == check_of(f)]
    if len(kept) < len(rows):
        logger.warning(
            "%s: %d of its %d rows are not as they were written; the next `kdcache extract` tries their clips again.",
            path, len(rows) - len(kept), len(rows),
        )  # fmt: skip
    return kept


def save_failures(out: Path, failures: Iterable[Failure]) -> None:
    """Replace the list of a folder with one writer, such as a run's; an empty list removes the file.

    There is one row for each clip and set of streams, the latest failure. A list that would not change is not written.
    """
    listed = _listed(failures)
    if listed == load_failures(out):
        return
    if not listed:
        (out / FILE).unlink()
        return
    with atomic(out / FILE) as temporary:
        text = table_text((*Failure._fields, _CHECK), [(*failure, check_of(failure)) for failure in listed])
        temporary.write_text(text, encoding="utf-8", newline="", errors="backslashreplace")


def update_failures(out: Path, failures: Iterable[Failure], superseded: Callable[[Failure], bool]) -> None:
    """Change one writer's rows of a cache's list, which others may be writing to at the same time.

    Args:
        out: the cache.
        failures: what has failed.
        superseded: tells which rows of the list no longer hold; all others stay.

    Raises:
        StoreError: the list cannot be read.
    """
    failures = list(failures)

    def merged() -> list[Failure]:
        return [*(f for f in load_failures(out) if not superseded(f)), *failures]

    if _listed(merged()) == load_failures(out):  # nothing to change, perhaps on a disk that cannot be written to
        return
    with locked(out):
        save_failures(out, merged())


def _listed(failures: Iterable[Failure]) -> list[Failure]:
    rows = {(failure.clip_id, failure.streams): failure for failure in failures}
    return sorted(row._replace(reason=row.reason[:MOST_REASON]) for row in rows.values())
