"""``kdcache verify``: hash everything again, name what is damaged, and with ``repair`` take it out of use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ManifestError, StoreError
from kdcache.files import writing
from kdcache.progress import progress as progress_of
from kdcache.store.commit import QUARANTINED, shard_files
from kdcache.store.index import drop_locations, open_index
from kdcache.store.index_digest import INDEX, check_index
from kdcache.store.indexed import Indexed
from kdcache.store.layout import DamagedShard, StrPath, row_digest
from kdcache.store.lock import locked
from kdcache.store.reader import StreamReader, unseen
from kdcache.store.scan import rebuild
from kdcache.store.set_aside import Damage, load_set_aside, save_set_aside
from kdcache.store.shard import open_shard
from kdcache.store.shard_list import ShardSummary, add_to_list, read_list
from kdcache.store.texts import manifest_rows, objects, strings

Summaries = dict[str, ShardSummary]  # of the shards that can be opened


@dataclass
class VerifyReport:
    """What ``verify`` found."""

    folder: Path
    shards: int = 0
    arrays: int = 0
    bytes: int = 0
    damaged: list[Damage] = field(default_factory=list)
    """Arrays whose bytes have changed, of shards that can be opened."""
    set_aside: list[Damage] = field(default_factory=list)
    """Of those, the ones that an earlier repair took out of use: listed, and no row of the index points at them."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """shard → why it cannot be used at all."""
    foreign: dict[str, str] = field(default_factory=dict)
    """shard → why it must not be opened (unsafe, another format); repair leaves these to you."""
    lost: list[Damage] = field(default_factory=list)
    """Clips that the index places where they are not."""
    index: str = ""
    """What is wrong with ``manifest.csv`` itself, if anything."""
    listing: str = ""
    """What is wrong with ``shards.json``, if anything."""
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything in use is what was written."""
        return not (self.fresh or self.unreadable or self.foreign or self.lost or self.index or self.listing)

    @property
    def fresh(self) -> list[Damage]:
        """Damaged arrays that were in use until now."""
        return sorted(set(self.damaged) - set(self.set_aside))

    def to_json(self) -> dict[str, Any]:
        """Its fields, and ``ok``."""
        return {"ok": self.ok, **{one.name: getattr(self, one.name) for one in fields(self)}}

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.shards} shard(s), {self.arrays} array(s), {self.bytes:,} bytes hashed"]
        lines += [f"damaged: {d.shard} row {d.row}, {d.stream} of clip {d.clip_id!r}: {d.reason}" for d in self.fresh]
        aside = {name: f"; set aside as {name + QUARANTINED}" if self.repaired else "" for name in self.unreadable}
        lines += [f"unreadable: {reason}{aside[name]}" for name, reason in self.unreadable.items()]
        lines += [f"not used: {reason}" for reason in self.foreign.values()]
        lines += [f"lost: {d.stream} of clip {d.clip_id!r}: {d.reason}" for d in self.lost]
        lines += [f"index: {self.index}"] if self.index else []
        lines += [f"list of shards: {self.listing}"] if self.listing else []
        if self.set_aside:
            lines.append(f"{len(self.set_aside)} array(s) were set aside by an earlier repair")
        return "\n".join([*lines, self._advice()])

    def _advice(self) -> str:
        """What to do, in one sentence that fits what was found and what a repair has done about it."""
        foreign = f"do what is said of the {len(self.foreign)} file(s) not used"
        repair, extract = f"run `kdcache verify {self.folder} --repair`", "the same `kdcache extract` again"
        if self.ok:
            return "all arrays in use are as they were written"
        if self.repaired and self.foreign and self.index:
            return f"manifest.csv is not rebuilt beside files that are not used: {foreign}, then {repair} again"
        if self.repaired and self.foreign:
            return f"repaired but for what is not used: {foreign}, then run {extract}"
        if self.repaired:
            return f"repaired: run {extract} to redo what is missing"
        if not self.foreign:
            return f"{repair}, then {extract}"
        if self.fresh or self.unreadable or self.lost or self.index or self.listing:
            return f"{foreign}, then {repair}, then {extract}"
        return f"{foreign}; a repair leaves them to you, and everything else is as it was written"


def verify(folder: StrPath, repair: bool = False, progress: bool = True) -> VerifyReport:
    """Hash every array of a cache again and compare with the digests in shards and index.

    One shard is held in memory at a time, beside the index.

    Args:
        folder: the cache.
        repair: take damaged arrays out of use, so that the next ``extract`` redoes just those: a shard that cannot be
            opened is renamed to ``*.damaged``; single arrays are listed in ``damaged.csv``, which ``extract`` and
            ``reindex`` heed while the rest of their shard stays in use; both are dropped from ``manifest.csv``. A
            listed array that hashes right again (a shard restored from a copy) is taken back into the list of good
            ones, and ``reindex`` finds it. A missing or broken index is rebuilt, a wrong list of shards mended.
        progress: show how far it is.

    Raises:
        StoreError: the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; name one that `kdcache extract` has filled.")
    report = VerifyReport(folder)
    before = set(load_set_aside(folder))
    aside = {damage.place for damage in before}
    paths = shard_files(folder)
    opened: Summaries = {}
    total = sum(p.lstat().st_size for p in paths)
    with progress_of("verify", total, "B", shown=progress) as bar:
        for path in paths:
            try:
                opened[path.name] = _hash_shard(path, report)
            except DamagedShard as error:
                report.unreadable[path.name] = error.what
            except StoreError as error:
                report.foreign[path.name] = str(error)
            bar.update(path.lstat().st_size)
    report.shards = len(paths)
    used: set[tuple[str, str, int]] = set()
    try:
        check = _check_index(folder, opened, report)
    except (StoreError, ManifestError) as error:
        report.index = str(error)
    else:
        report.lost, used = check.lost, check.used
        report.index = _changed(folder)
    report.set_aside = sorted(d for d in report.damaged if d.place in aside - used)
    report.listing = _wrong_list(folder, opened)
    if repair:
        _repair(folder, report, opened, before)
    return report


def _wrong_list(folder: Path, opened: Summaries) -> str:
    """What is wrong with the list of shards; empty where all that is listed holds."""
    try:
        listed = read_list(folder)
    except StoreError as error:
        return str(error)
    wrong = [name for name, one in opened.items() if listed.get(name, one) != one]
    return f"it has something else for {wrong[0]}; run `kdcache reindex {folder}`" if wrong else ""


def _changed(folder: Path) -> str:
    """Why the index is not what was written; empty when it is."""
    try:
        check_index(folder)
    except StoreError as error:
        return str(error)
    return ""


def _hash_shard(path: Path, report: VerifyReport) -> ShardSummary:
    """Compare every array of a shard with its digests, once its texts are known to make sense."""
    shard, tables = open_shard(path)
    clips = strings(path, tables, "clip")
    manifest_rows(path, tables)
    objects(path, tables, "origin")
    expected = {s: strings(path, tables, f"digest/{s}") for s in shard.streams}
    for stream in shard.streams:
        strings(path, tables, f"key/{stream}")
        with StreamReader(shard, stream, unseen(shard, stream)) as reader:
            for row, digest in enumerate(expected[stream]):
                reason = "its bytes have changed since they were written"
                try:
                    payload = reader.row(row)
                    found = row_digest(payload)
                    report.bytes += sum(map(len, payload)) if isinstance(payload, list) else payload.nbytes
                except StoreError as error:
                    found, reason = "", reason if reason in str(error) else "its bytes cannot be read"
                report.arrays += 1
                if found != digest:
                    report.damaged.append(Damage(shard.path.name, stream, row, clips[row], reason))
    return ShardSummary.of(shard)


@dataclass
class _IndexCheck:
    """What the index's entries point at."""

    index: Indexed
    bad: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """stream → which rows point at nothing, at something else or at something damaged."""
    lost: list[Damage] = field(default_factory=list)
    used: set[tuple[str, str, int]] = field(default_factory=set)
    """Shard, stream and row of damaged arrays that entries point at."""


def _check_index(folder: Path, opened: Summaries, report: VerifyReport) -> _IndexCheck:
    """Hold the index's entries against the shards; shards published since they were hashed are not judged.

    Tables are read once more, one shard's at a time: together they take more memory than the index.
    """
    try:
        check = _IndexCheck(open_index(folder))
    except StoreError:
        check = _IndexCheck(open_index(folder, edited=True))
    index, damaged = check.index, {d.place for d in report.damaged}
    numbers = {stream: index.numbers(stream) for stream in index.streams}
    masks = {stream: np.zeros(index.rows, bool) for stream in index.streams}
    unopened = report.unreadable.keys() | report.foreign.keys()
    for name, parts in sorted(_by_shard(index, numbers).items()):
        if name not in opened and name not in unopened and (folder / name).exists():
            continue
        tables = _ShardTables.of(folder, name) if name in opened else None
        for stream, part in parts.items():
            rows = numbers[stream][part].tolist()
            broken = [(name, stream, row) in damaged for row in rows]
            check.used |= {(name, stream, row) for row, its in zip(rows, broken, strict=True) if its}
            reasons = [f"{name} is not there"] * len(rows)
            if tables is not None:
                reasons = tables.misplaced(index, stream, part.tolist(), rows)
            masks[stream][part] = [bool(reason) or its for reason, its in zip(reasons, broken, strict=True)]
            if name not in unopened:
                check.lost += [
                    Damage(name, stream, row, index.table.cell("clip_id", i), reason)
                    for i, row, reason in zip(part.tolist(), rows, reasons, strict=True)
                    if reason
                ]
    check.bad = {stream: mask for stream, mask in masks.items() if mask.any()}
    return check


def _by_shard(index: Indexed, numbers: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, NDArray[np.intp]]]:
    """Shard → stream → the rows of the index that name it."""
    found: dict[str, dict[str, NDArray[np.intp]]] = {}
    for stream, its in numbers.items():
        cached = np.flatnonzero(its >= 0)
        codes, names = pd.factorize(np.array(index.shards(stream), object)[cached])
        order = cached[np.argsort(codes, kind="stable")]
        for name, part in zip(names, np.split(order, np.cumsum(np.bincount(codes))[:-1]), strict=len(names) > 0):
            found.setdefault(str(name), {})[stream] = part
    return found


@dataclass(frozen=True)
class _ShardTables:
    """What a shard says of its clips; nothing, where it has gone since it was hashed."""

    name: str
    spans: Sequence[tuple[Any, Any]]
    """None: the source's own start or end."""
    held: Mapping[str, list[tuple[str, str]]]
    """Stream → key and digest of each clip."""

    @classmethod
    def of(cls, folder: Path, name: str) -> Self:
        """Of a shard that could be opened when it was hashed."""
        path = folder / name
        try:
            shard, tables = open_shard(path)
            spans = [(row.get("start_s"), row.get("stop_s")) for row in manifest_rows(path, tables)]
            columns = {s: [strings(path, tables, f"{t}/{s}") for t in ("key", "digest")] for s in shard.streams}
        except StoreError:  # by another repair, which has named it
            return cls(name, [], {})
        return cls(name, spans, {s: list(zip(*each, strict=True)) for s, each in columns.items()})

    def misplaced(self, index: Indexed, stream: str, part: Sequence[int], rows: Sequence[int]) -> list[str]:
        """For each of these rows of the index, and of the shard, what is wrong with it; empty when all is well."""
        if not self.held:
            return [f"{self.name} is not there"] * len(rows)
        if stream not in self.held:
            return [f"{self.name} does not hold {stream}"] * len(rows)
        held, cell = self.held[stream], index.table.cell
        times = [np.asarray(index.column(column), float)[part].tolist() for column in ("start_s", "stop_s")]
        reasons = []
        for i, row, start, stop in zip(part, rows, *times, strict=True):
            span = tuple(None if time != time else time for time in (start, stop))
            if row >= len(held) or held[row] != (cell(f"{stream}:key", i), cell(f"{stream}:digest", i)):
                reasons.append(f"{self.name} holds something else there")
            else:
                reasons.append("" if self.spans[row] == span else f"{self.name} holds another span there")
        return reasons


def _repair(folder: Path, report: VerifyReport, opened: Summaries, before: set[Damage]) -> None:
    """Take everything damaged out of use: list and index change under one lock, and the index is looked at anew.

    A writer that is killed between the two leaves arrays that are listed and still indexed: ``verify`` goes on naming
    them, ``extract`` redoes them.
    """
    with writing(folder), locked(folder):
        for name in report.unreadable:
            with contextlib.suppress(FileNotFoundError):  # another repair was first
                os.rename(folder / name, folder / (name + QUARANTINED))
        since = set(load_set_aside(folder)) - before  # by another repair, while this one read
        save_set_aside(folder, [*report.damaged, *since])
        if report.index and not report.foreign:
            if (folder / INDEX).exists():
                os.replace(folder / INDEX, folder / (INDEX + QUARANTINED))
            if any(shard_files(folder)):  # else the next extract begins anew
                rebuild(folder)
        elif not report.index:
            check = _check_index(folder, opened, report)
            if check.bad:
                drop_locations(folder, check.index.frame(check.index.table.names), check.bad)
        if report.listing:
            add_to_list(folder, opened)
    report.repaired = True
