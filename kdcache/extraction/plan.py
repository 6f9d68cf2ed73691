"""The plan of an extraction: manifest ⋈ cache by key → the missing work, grouped by source, cut into units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from kdcache.errors import KdcacheError
from kdcache.extraction.unchanged import Unchanged
from kdcache.manifest import frame_rate
from kdcache.recipe import clip_key, nothing_to_enlarge
from kdcache.store.failures import Failure
from kdcache.streams.base import ClipSpan, Stream

SHARD_BYTES = 256 * 2**20  # a shard closes at about this size …
SHARD_SECONDS = 300.0  # … or after this much work, whichever comes first


@dataclass(frozen=True)
class Task:
    """One clip and the streams it still lacks."""

    row: dict[str, Any]  # the manifest row, JSON-able
    path: str  # absolute path of the source
    fingerprint: str
    start_s: float
    stop_s: float
    keys: dict[str, str]  # stream → key, for the missing streams only
    looks: frozenset[tuple[int, int]] = frozenset()  # sizes and times of change under which it was fingerprinted

    @property
    def clip_id(self) -> str:
        """The manifest's ``clip_id``."""
        return str(self.row["clip_id"])

    def failed(self, stage: str, reason: str) -> Failure:
        """How it is listed when it cannot be had."""
        first = next(iter(self.keys.values()))
        return Failure(self.clip_id, str(self.row["source"]), stage, reason, first, " ".join(self.keys))

    @property
    def span(self) -> ClipSpan:
        """What streams know of the clip."""
        return ClipSpan(self.path, self.start_s, self.stop_s, frame_rate(self.row.get("fps")), self.fingerprint)


@dataclass(frozen=True)
class WorkUnit:
    """What one worker does in one go: tasks that lack the same streams, sorted by source and time."""

    streams: tuple[str, ...]
    tasks: tuple[Task, ...]
    hashed: frozenset[str] = frozenset()
    """Paths of sources whose bytes are hashed on the way."""

    @property
    def sources(self) -> list[str]:
        """Paths of what it reads."""
        return list(dict.fromkeys(task.path for task in self.tasks))


@dataclass
class Plan:
    """The work of one call of ``extract``."""

    units: list[WorkUnit] = field(default_factory=list)
    located: dict[str, dict[str, tuple[str, int, str, str]]] = field(default_factory=dict)
    """stream → clip_id → (shard, row, key, digest) of what is cached already."""
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    """stream → clip_id → key of what is not cached."""
    unreadable: list[Failure] = field(default_factory=list)
    """Clips whose source is missing or cannot be opened at all."""
    skipped: list[Failure] = field(default_factory=list)
    """Clips that failed before and have not changed; ``--retry-failed`` takes them up again."""
    aliases: dict[str, list[Task]] = field(default_factory=dict)
    """clip_id → further clips of the same source and span: computed once, indexed under each name."""
    index: str = ""
    """SHA-256 of the index that has all of this as it is."""
    planned_on: str = ""
    """SHA-256 of the index that this was planned from; empty where there was none."""
    asked: Unchanged | None = None
    """What the call asks for, to be remembered when all of it is cached."""
    clips: int = 0
    cached: int = 0
    bytes: int = 0

    @property
    def tasks(self) -> int:
        """Number of clips to compute."""
        return sum(len(unit.tasks) for unit in self.units)

    @property
    def sources(self) -> int:
        """Number of sources to open."""
        return len({task.path for unit in self.units for task in unit.tasks})


def make_plan(
    manifest: pd.DataFrame,
    sources: pd.Series[str],
    streams: Sequence[Stream],
    fingerprints: Mapping[str, str | KdcacheError],
    paths: Mapping[str, str],
    cached: Mapping[str, Mapping[str, tuple[str, int, str]]],
    failed: Mapping[str, Failure],
    origin: Callable[[str, int], Mapping[str, Any]],
    parts: int = 1,
) -> Plan:
    """Find what is missing.

    Args:
        manifest: validated rows.
        sources: of each row what is read of it, see ``sources_of``.
        streams: what is asked for.
        fingerprints: source → fingerprint, or the error that opening it gave.
        paths: source → absolute path.
        cached: stream → key → (shard, row, digest) of everything the cache holds.
        failed: key → failure of an earlier call; such clips are skipped.
        origin: shard and row → provenance of what is cached there.
        parts: number of workers; work is cut so that each gets some.
    """
    asked = " ".join(s.name for s in streams)
    plan = Plan(clips=len(manifest), located={s.name: {} for s in streams}, missing={s.name: {} for s in streams})
    first_with: dict[tuple[str, ...], Task] = {}
    missing: dict[tuple[str, ...], list[Task]] = {}
    rows: list[dict[str, Any]] | None = None
    columns = zip(manifest["clip_id"], sources, manifest["start_s"], manifest["stop_s"], strict=True)
    for position, (clip_id, source, start_s, stop_s) in enumerate(columns):
        fingerprint = fingerprints[source]
        if isinstance(fingerprint, KdcacheError):
            plan.unreadable.append(Failure(clip_id, source, "open", str(fingerprint), "", asked))
            continue
        lacking: dict[str, str] = {}
        for stream in streams:
            key = clip_key(stream.digest_of(clip_id), fingerprint, start_s, stop_s)
            span, places = (fingerprint, start_s, stop_s), cached.get(stream.name, {})
            entry = _cached(stream, key, span, places, origin)
            if entry is None and places:
                alike = ((one, clip_key(one.digest_of(clip_id), *span)) for one in stream.alike)
                found = ((one, e) for one, its in alike if (e := _cached(one, its, span, places, origin)))
                entry = next((e for one, e in found if stream.takes(one, partial(origin, *e[:2]))), None)
            if entry is None:
                lacking[stream.name] = plan.missing[stream.name][clip_id] = key
            else:
                plan.located[stream.name][clip_id] = entry
        if not lacking:
            plan.cached += 1
            continue
        before = next((failed[key] for key in lacking.values() if key in failed), None)
        if before is not None:
            plan.skipped.append(before._replace(clip_id=clip_id, source=source))
            continue
        if rows is None:
            rows = json_rows(manifest)
        task = Task(rows[position], paths[source], fingerprint, float(start_s), float(stop_s), lacking)
        same = first_with.setdefault(tuple(lacking.values()), task)
        if same is not task:
            plan.aliases.setdefault(same.clip_id, []).append(task)
            continue
        plan.bytes += sum(s.nbytes(start_s, stop_s) for s in streams if s.name in lacking)
        missing.setdefault(tuple(lacking), []).append(task)
    by_name = {s.name: s for s in streams}
    for lacked, tasks in missing.items():
        plan.units += _cut([by_name[n] for n in lacked], tasks, parts)
    return plan


def _cached(
    stream: Stream,
    key: str,
    span: tuple[str, float, float],
    places: Mapping[str, tuple[str, int, str]],
    origin: Callable[[str, int], Mapping[str, Any]],
) -> tuple[str, int, str, str] | None:
    """Where an array lies: (shard, row, key, digest); one that enlarging would not have changed counts, too."""
    if (place := places.get(key)) is not None:
        return place[0], place[1], key, place[2]
    if stream.enlarging is None or not places:
        return None
    key = clip_key(stream.enlarging.digest, *span)
    place = places.get(key)
    if place is None or not nothing_to_enlarge(stream.recipe, origin(place[0], place[1])):
        return None
    return place[0], place[1], key, place[2]


def sources_of(manifest: pd.DataFrame, streams: Sequence[Stream]) -> pd.Series[str]:
    """What is read of each clip: what the manifest's column for the streams' medium names, else its ``source``.

    All streams read the same medium; ``kdcache.streams.registry.resolve`` sees to it.
    """
    column, sources = streams[0].column, manifest["source"]
    return manifest[column].where(manifest[column] != "", sources) if column in manifest else sources


def json_rows(manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """The manifest's rows as JSON-able dicts: missing values become ``None``, integers stay integers."""
    columns = {str(name): _plain(values) for name, values in manifest.items()}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _plain(column: pd.Series[Any]) -> list[Any]:
    """A column's cells as Python's own."""
    cells = [v.item() if isinstance(v, np.generic) else v for v in column.tolist()]
    return [None if gone else v for v, gone in zip(cells, column.isna().tolist(), strict=True)]


def cut_again(units: Sequence[WorkUnit], streams: Sequence[Stream], parts: int) -> list[WorkUnit]:
    """The same work cut for another number of workers: how many a cluster has room for is known after planning."""
    by_name, tasks = {s.name: s for s in streams}, dict[tuple[str, ...], list[Task]]()
    left = set().union(*(unit.hashed for unit in units))
    for unit in units:
        tasks.setdefault(unit.streams, []).extend(unit.tasks)
    found = []
    for names, those in tasks.items():
        for unit in _cut([by_name[name] for name in names], those, parts):
            here = frozenset(left.intersection(unit.sources))
            left -= here
            found.append(replace(unit, hashed=here))
    return found


def _cut(streams: list[Stream], tasks: list[Task], parts: int) -> list[WorkUnit]:
    """Cut tasks into units of about a shard, never more than needed to give every worker some, source by source."""
    tasks = sorted(tasks, key=lambda t: (t.path, -1.0 if np.isnan(t.start_s) else t.start_s, t.stop_s, t.clip_id))
    sizes = [sum(s.nbytes(t.start_s, t.stop_s) for s in streams) for t in tasks]
    limit = min(SHARD_BYTES, max(1, sum(sizes) // max(parts, 1)))
    units: list[WorkUnit] = []
    current: list[Task] = []
    taken = 0
    names = tuple(s.name for s in streams)
    for task, size in zip(tasks, sizes, strict=True):
        full = taken >= limit
        # Between two sources a unit closes when full; within one only at twice that, so that a source is decoded once.
        if current and (full and (task.path != current[-1].path or taken >= 2 * limit)):
            units.append(WorkUnit(names, tuple(current)))
            current, taken = [], 0
        current.append(task)
        taken += size
    if current:
        units.append(WorkUnit(names, tuple(current)))
    return units
