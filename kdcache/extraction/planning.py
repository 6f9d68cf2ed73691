"""What an extraction plans from: what sources are now, what the index says, and shards that it does not account for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdcache.extraction.plan import Plan, make_plan, sources_of
from kdcache.extraction.settled import settled
from kdcache.extraction.source_memory import FILE as MEMORY
from kdcache.extraction.source_memory import fingerprint_sources, places_now
from kdcache.extraction.unchanged import Unchanged
from kdcache.roots import Roots
from kdcache.sources import SourceCache
from kdcache.store import clean
from kdcache.store.failures import load_failures
from kdcache.store.find import CachedPlaces, indexed_places, places_beyond
from kdcache.store.index_changes import untouched
from kdcache.store.indexed import Indexed
from kdcache.store.scan import Origins
from kdcache.store.set_aside import places_set_aside
from kdcache.streams.base import Stream


def plan_extraction(
    rows: pd.DataFrame,
    streams: Sequence[Stream],
    roots: Roots,
    fetched: SourceCache | None,
    out: Path,
    workers: int,
    lacking: Collection[str] = (),
    *,
    retry_failed: bool = False,
    dry_run: bool = False,
    rehash: bool = False,
) -> Plan:
    """Find what a cache lacks of a manifest.

    Args:
        rows: of the manifest.
        streams: what is asked for.
        roots: of the sources.
        fetched: where sources at addresses are fetched into.
        out: the cache.
        workers: work is cut so that each gets some.
        lacking: streams whose weights are missing, so that what is cached of them is not known.
        retry_failed: take up clips that failed before.
        dry_run: write nothing.
        rehash: read all sources from end to end.
    """
    if not dry_run:
        clean(out)
    sources = sources_of(rows, streams)
    distinct = sources.unique().tolist()
    places = {} if rehash else places_now(distinct, roots)
    unchanged = None
    if len(places) == len(distinct) and not lacking:
        unchanged = Unchanged(rows, sources, streams, places.values(), out)
        if (digest := unchanged.found()) is not None:
            nothing = {s.name: dict[str, Any]() for s in streams}
            return Plan(located=nothing, index=digest, clips=len(rows), cached=len(rows))
    fingerprints, paths = fingerprint_sources(
        distinct, roots, out / MEMORY, places, fetched, remember=not dry_run, rehash=rehash
    )
    del places
    for stream in streams:
        stream.check_sources(list(paths.values()))
    failed = {} if retry_failed else {f.key: f for f in load_failures(out) if f.key}

    def plan(cached: Mapping[str, Mapping[str, tuple[str, int, str]]]) -> Plan:
        return make_plan(left, sources, streams, fingerprints, paths, cached, failed, Origins(out).at, workers)

    names = [s.name for s in streams if s.name not in lacking]
    index, done = Indexed.of(out), np.zeros(len(rows), bool)
    if index is not None and not lacking:
        done = settled(rows, sources, streams, fingerprints, index)
    left, sources = rows[~done], sources[~done]
    known = indexed_places(None if done.all() else index, names)
    found = plan(known)
    if index is not None and done.all() and untouched(index, rows, found.located, {}, places_set_aside(out)):
        found.index = index.digest
        if unchanged is not None and not dry_run:
            unchanged.note()
    if found.units:  # of what seems missing, a run that was killed may have left some
        beyond = places_beyond(out, index, names, note=not dry_run)
        if any(beyond.values()):
            found = plan({name: CachedPlaces(known[name], beyond[name]) for name in names})
    found.clips, found.cached = len(rows), found.cached + int(done.sum())
    found.planned_on, found.asked = "" if index is None else index.digest, unchanged
    return found
