"""``kdcache.extract``: plan, run, index, report."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdcache.cluster.options import Cluster, asked_of, cluster_of
from kdcache.errors import OptionError, StoreError
from kdcache.extraction.estimate import automatic_workers, estimate_seconds, resolve_without_weights
from kdcache.extraction.fitted import cross_fits, fitted_weights, incomparable, leaks, part_weights, unknown_parts
from kdcache.extraction.local import run_units
from kdcache.extraction.plan import Plan, Task, WorkUnit
from kdcache.extraction.planning import plan_extraction
from kdcache.extraction.source_memory import FILE as MEMORY
from kdcache.extraction.source_memory import add_contents, load_memory, looks_of, without_content
from kdcache.extraction.worker import Computed, Done, Event, Hashed, Recovered, WorkerConfig
from kdcache.log import logger
from kdcache.manifest import read_manifest, validate
from kdcache.progress import progress
from kdcache.roots import Root, Roots
from kdcache.runtime import cores, resolve_devices, threads_of_each
from kdcache.sources import SourceCache
from kdcache.sources.fetched import DEFAULT_GB
from kdcache.splits import without_splits
from kdcache.store import clean
from kdcache.store.failures import FILE, Failure, update_failures
from kdcache.store.fitted import save_fitted, save_parts
from kdcache.store.index import refuse_other_classes, update_index
from kdcache.streams.registry import resolve, without_effect
from kdcache.streams.settings import StreamSettings
from kdcache.text import size
from kdcache.workers import StopFlag, stop_on_signals

SAVE_PAUSE = 20  # the list of failures is written again after so many times as long as writing it took
SPARE_BYTES = 64 * 2**20  # left free on the disk beyond the estimate


@dataclass
class ExtractReport:
    """What one call of ``extract`` did."""

    out: Path
    clips: int
    cached: int
    """Clips that needed nothing."""
    extracted: int = 0
    failures: list[Failure] = field(default_factory=list)
    """Every clip of the manifest that has failed, in this call or before."""
    shards: list[str] = field(default_factory=list)
    stopped: bool = False
    """A signal ended the run early; what was finished is kept, the same call goes on from there."""
    sources: int = 0
    bytes: int = 0
    """Estimated size of the missing work."""
    planned: int | None = None
    """Of a dry run: clips that would be extracted."""
    seconds: float | None = None
    """Of a dry run: estimated time, from computing two clips; ``None`` where weights are missing."""
    workers: int = 1
    """Processes …"""
    threads: int = 1
    """… and the threads of each."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Of a dry run: stream → why its weights are not here, so that nothing is known of what is cached of it."""
    warnings: list[str] = field(default_factory=list)
    """Weights that were fitted on clips which the manifest holds out, or networks whose features do not go together."""

    def __str__(self) -> str:
        return "\n".join([self._summary(), *(f"Warning: {sentence}" for sentence in self.warnings)])

    def _summary(self) -> str:
        if self.planned is not None:
            took = "" if self.seconds is None else f" and {timedelta(seconds=round(self.seconds))} (h:mm:ss)"
            shared = _counted(self.workers, "worker") + f" of {_counted(self.threads, 'thread')}"
            text = (
                f"{self.clips} clips: {self.cached} cached already, {len(self.failures)} unreadable or failed before, "
                f"{self.planned} to extract from {self.sources} sources: about {self.bytes / 1e6:,.0f} MB{took} with "
                f"{shared} on {_counted(cores(), 'core')}. Nothing was written."
            )
            for stream, why in self.lacking.items():
                text += (
                    f"\n{stream}: {why.rstrip('.')}. Without its weights neither the time nor what is cached of it is "
                    "known; all its clips are counted."
                )
            return text
        text = f"{self.clips} clips: {self.cached} cached already, {self.extracted} extracted"
        text += f" into {len(self.shards)} shards" if self.shards else ""
        if self.failures:
            text += f", {len(self.failures)} failed (see {self.out / FILE}; --retry-failed tries them again)"
        return text + (" — stopped early; the same command goes on from here." if self.stopped else ".")


def extract(
    manifest: pd.DataFrame | str | os.PathLike[str],
    root: Root = None,
    out: str | os.PathLike[str] = "out",
    streams: Sequence[str] = ("i3d-rgb/mixed4a",),
    weights: Mapping[str, str | os.PathLike[str]] | None = None,
    workers: int | str | None = None,
    *,
    engine: str = "local",
    address: str | None = None,
    worker_cpus: float | None = None,
    worker_gpus: float | None = None,
    device: str = "auto",
    batch: int | None = None,
    compile: bool = False,
    codec: str | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    rehash: bool = False,
    part: tuple[int, int] = (1, 1),
    allow_absolute: bool = False,
    source_cache: str | os.PathLike[str] | None = None,
    source_cache_gb: float = DEFAULT_GB,
    bar: bool = True,
    **settings: Any,
) -> ExtractReport:
    """Compute what the cache in ``out`` lacks of the manifest's clips and streams.

    Args:
        manifest: a manifest file, or rows as ``read_manifest`` returns them.
        root: the folder or address (``s3://…``, ``https://…``) that ``source`` paths are relative to; or several, in
            which a source is looked for in turn.
        out: the cache: shards, ``manifest.csv`` and, if clips failed, ``failures.csv``.
        streams: what to cache, for example ``["i3d-rgb/mixed4a", "flow"]``.
        weights: backbone → checkpoint, folder of ``fit(…, cross_fit=K)`` or ``random:SEED``. With such a folder each
            clip that was fitted on is computed by the network that has not seen it, every other by the one of all.
        workers: processes; 1, the default, works in this one, ``"auto"`` takes one a core as far as memory allows. On a
            GPU this process runs the networks, and these decode for it. On a cluster the default is as many as it has
            room for.
        engine: ``local``: this machine; ``ray``: a Ray cluster whose nodes see ``out`` and ``root`` by the same names.
        address: of the cluster, as ``ray.init`` takes it; ``None``: ``RAY_ADDRESS``, the one that this machine is part
            of, or a new one of this machine alone.
        worker_cpus: cores, and threads, of each worker on the cluster; default 1.
        worker_gpus: GPUs of each, which may be a fraction; default 1 where there are any and ``device`` is not ``cpu``.
        device: ``auto`` (all GPUs, or the CPU where there is none), ``cpu``, ``cuda`` (the first) or, on this machine,
            ``cuda:N``, several of them separated by commas.
        batch: segments a backbone takes at once; halved when memory runs out. Default: 1 on a CPU, on a GPU by size.
        compile: compile networks by ``torch.compile``, on a GPU; the first batch of each takes a minute or more.
        codec: ``zstd`` compresses shards.
        dry_run: only plan; weights that are missing are reported and not fetched.
        retry_failed: try clips again that failed before.
        rehash: read all sources from end to end, whatever ``sources.csv`` remembers, and redo the clips of those whose
            bytes have changed.
        part: ``(i, n)``: do the i-th of n parts of the plan, for job arrays.
        allow_absolute: sources may be absolute paths; nothing keeps these below a root.
        source_cache: folder into which sources at addresses are fetched; default: in the user's cache folder.
        source_cache_gb: gigabytes that these may take there.
        bar: show progress with clips/s and the time left.
        settings: sampling, views, precision and storage: the fields of ``kdcache.streams.settings.StreamSettings``.

    Returns:
        A report; clips that failed are in it and in ``failures.csv``, they raise nothing.

    Raises:
        ManifestError, OptionError, WeightsError, DeviceError: before any work.
        RemoteError: a remote root cannot be reached or read.
        StoreError: the disk is too small or shards cannot be written.
    """
    out, roots = Path(out), Roots.of(root, allow_absolute).check(remote=True)
    if out.exists() and not out.is_dir():
        raise OptionError(f"{out} is no folder, which a cache is: choose another out.")
    fetched = SourceCache.of(source_cache, source_cache_gb) if roots.addresses else None
    if isinstance(manifest, (str, os.PathLike)):
        rows = read_manifest(manifest, root, allow_absolute=allow_absolute)
    else:
        rows = validate(manifest, root=root, allow_absolute=allow_absolute)
    cluster = cluster_of(engine, address, worker_cpus, worker_gpus, device)
    refuse_other_classes(out, rows)
    if (note := without_splits(rows)) is not None:
        logger.info("%s", note)
    rows = _part(rows, part)
    if device not in ("auto", "cpu") and cluster is None:
        resolve_devices(device)  # a GPU that is not there is an error before any work
    if compile and (cluster is None or device == "cpu"):  # the GPUs of other machines are not known here
        from kdcache.backbones.compiled import refuse_on_cpu  # torch is slow to import

        refuse_on_cpu(resolve_devices(device)[0])
    chosen, lacking = StreamSettings.of(settings), dict[str, str]()
    if dry_run:
        wanted, lacking = resolve_without_weights(streams, chosen, weights)
    else:
        wanted = resolve(streams, chosen, weights)
    count = automatic_workers(1 if workers is None else workers) if cluster is None else asked_of(cluster, workers)
    how = {"retry_failed": retry_failed, "dry_run": dry_run, "rehash": rehash}
    plan = plan_extraction(rows, wanted, roots, fetched, out, count, lacking, **how)
    for stream in wanted:
        missing = len(plan.missing.get(stream.name, {}))
        logger.debug("%s: recipe %s, shape %s, %d clips missing", stream.name, stream.digest, stream.shape, missing)
    fitted = fitted_weights(wanted)
    warnings = [*leaks(rows, fitted), *incomparable(wanted), *unknown_parts(rows, wanted)]
    warnings += without_effect(wanted, settings)
    report = ExtractReport(out, plan.clips, plan.cached, sources=plan.sources, bytes=plan.bytes, warnings=warnings)
    for sentence in report.warnings:
        logger.warning("%s", sentence)
    if not plan.units:  # an unchanged call needs neither torch nor a cluster
        device, count = "cpu", 1
    elif cluster is None or dry_run:
        device = ",".join(resolve_devices(device))
        count = min(automatic_workers(count if workers is None else workers, device, wanted), len(plan.units))
    threads = threads_of_each(count) if cluster is None else cluster.threads
    shown = (plan.sources, len(plan.units), count, threads, device)
    logger.debug("%d sources in %d units: %d workers of %d threads on %s", *shown)
    config = WorkerConfig(out, tuple(wanted), device, batch, threads, codec, fetched, compile)
    report.workers, report.threads = count, threads
    if dry_run:
        report.failures = plan.unreadable + plan.skipped
        report.planned = plan.tasks
        report.lacking = lacking
        report.seconds = None if lacking else estimate_seconds(plan, config, count)
        return report
    _check_disk(out, plan.bytes, codec)
    for name, cross in cross_fits(wanted).items():
        clips = len(cross.clips.keys() & set(rows["clip_id"]))
        logger.info("%s: %d clips are computed by networks that were fitted without them", name, clips)
        save_parts(out, cross.assignment, cross.lists())
    fitted |= part_weights(wanted)
    save_fitted(out, {sha256: metadata.to_json() for sha256, metadata in fitted.items()})
    ExtractionRun(rows, plan, report, bar).go(_looked_at(plan.units, out / MEMORY), config, count, cluster)
    return report


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _part(rows: pd.DataFrame, part: tuple[int, int]) -> pd.DataFrame:
    """The rows of one of several parts: whole sources, about as many clips each, the same whatever is cached."""
    number, parts = part
    if not 1 <= number <= parts:
        raise OptionError(f"--part {number}/{parts}: the first number runs from 1 to the second.")
    if parts == 1:
        return rows
    counts = rows["source"].value_counts().sort_index()
    middle = counts.cumsum() - counts / 2
    mine = counts.index[np.minimum(middle * parts // len(rows), parts - 1) == number - 1]
    return rows[rows["source"].isin(mine)].reset_index(drop=True)


def _looked_at(units: Sequence[WorkUnit], memory: Path) -> list[WorkUnit]:
    """The units, which know how their sources were; the first that opens one hashes it where that was not done."""
    paths = {task.path for unit in units for task in unit.tasks}
    known = [look for look in load_memory(memory).values() if look.path in paths] if paths else []
    left, looks = set(without_content(known, paths)), looks_of(known)
    found = []
    for unit in units:
        here = frozenset(left.intersection(task.path for task in unit.tasks))
        left -= here
        tasks = [replace(task, looks=looks.get((task.path, task.fingerprint), frozenset())) for task in unit.tasks]
        found.append(replace(unit, tasks=tuple(tasks), hashed=here))
    return found


def _check_disk(out: Path, needed: int, codec: str | None) -> None:
    if not needed:
        return
    folder = next(p for p in (out, *out.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if codec is None and needed + SPARE_BYTES > free:
        raise StoreError(
            f"{out}: about {size(needed)} are to be written and {size(SPARE_BYTES)} kept free, but only {size(free)} "
            "are free; free some space, choose another --out, or compress with --codec zstd."
        )


class ExtractionRun:
    """One run: takes the workers' events, keeps the list of failures and the index up to date."""

    def __init__(self, rows: pd.DataFrame, plan: Plan, report: ExtractReport, bar: bool) -> None:
        self._rows, self._plan, self._report = rows, plan, report
        self._located = plan.located
        self._failures = {f.clip_id: f for f in (*plan.skipped, *plan.unreadable)}
        planned = [task.clip_id for unit in plan.units for task in unit.tasks]
        self._judged = set(rows["clip_id"].tolist()).difference(planned, *(self._names(clip) for clip in planned))
        self._contents: dict[tuple[str, int, int], str] = {}
        self._next_save = 0.0
        self._bar = progress("extract", plan.tasks, "clips", shown=bar and plan.tasks > 0)

    def go(self, units: list[WorkUnit], config: WorkerConfig, workers: int, cluster: Cluster | None) -> None:
        """Run the units; whatever ends the run, failures and index are saved."""
        stop = StopFlag()
        with stop_on_signals(stop), self._bar, contextlib.ExitStack() as at_end:
            config.out.mkdir(parents=True, exist_ok=True)
            at_end.callback(self._save)
            run_units(units, config, workers, self._on_event, stop, cluster)
        self._report.stopped = stop.is_set()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Computed):
            self._bar.update(1)
        elif isinstance(event, Failure):
            self._bar.update(1)
            for other in self._same(event.clip_id):
                self._failures[other.clip_id] = event._replace(clip_id=other.clip_id, source=str(other.row["source"]))
            self._failures[event.clip_id] = event
            self._judged.update((event.clip_id, *self._names(event.clip_id)))
            logger.warning("failed: %s (%s): %s", event.clip_id, event.stage, event.reason)
            self._save_now_and_then()
        elif isinstance(event, Hashed):
            self._contents[event.place] = event.content
        elif isinstance(event, Done):
            logger.debug("%s: %d clips", self._report.out / event.shard.name, len(event.tasks))
            self._report.shards.append(event.shard.name)
            for row, task in enumerate(event.tasks):
                digests = {stream: event.shard.digests[stream][row] for stream in task.keys}
                self._note_clip(task, event.shard.name, row, digests)
            self._save_now_and_then()
        elif isinstance(event, Recovered):
            self._note_clip(event.task, event.shard, event.row, event.digests)

    def _same(self, clip_id: str) -> list[Any]:
        return self._plan.aliases.get(clip_id, [])

    def _names(self, clip_id: str) -> list[str]:
        return [task.clip_id for task in self._same(clip_id)]

    def _note_clip(self, task: Task, shard: str, row: int, digests: Mapping[str, str]) -> None:
        for clip in (task, *self._same(task.clip_id)):
            self._report.extracted += 1
            self._judged.add(clip.clip_id)
            for stream, key in clip.keys.items():
                self._located[stream][clip.clip_id] = (shard, row, key, digests[stream])

    def _save_now_and_then(self) -> None:
        if time.monotonic() >= self._next_save:
            self._save_lists()

    def _save_lists(self) -> None:
        began = time.monotonic()
        if self._contents:
            add_contents(self._report.out / MEMORY, self._contents)
            self._contents.clear()
        streams = self._located.keys()
        update_failures(
            self._report.out, self._failures.values(), lambda f: f.clip_id in self._judged and f.concerns(streams)
        )
        ended = time.monotonic()
        self._next_save = ended + SAVE_PAUSE * (ended - began)

    def _save(self) -> None:
        clean(self._report.out)  # of workers that died
        self._report.failures = list(self._failures.values())
        self._save_lists()
        plan = self._plan
        index = update_index(
            self._report.out, self._rows, self._located, plan.missing, plan.index, planned_on=plan.planned_on
        )
        cached = self._report.cached + self._report.extracted
        if plan.asked is not None and plan.units and cached == self._report.clips and not self._failures:
            plan.asked.note(index)
