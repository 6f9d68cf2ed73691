"""``kdcache verify``: hash everything again, name what is damaged, and with ``repair`` take it out of use."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ManifestError, StoreError
from kdcache.files import writing
from kdcache.progress import progress as progress_of
from kdcache.store.commit import QUARANTINED, shard_files
from kdcache.store.index import drop_locations, load_index
from kdcache.store.index_digest import INDEX, check_index
from kdcache.store.indexed import indexed_streams
from kdcache.store.layout import DamagedShard, StrPath, row_digest
from kdcache.store.lock import locked
from kdcache.store.reader import StreamReader, unseen
from kdcache.store.scan import rebuild
from kdcache.store.set_aside import Damage, load_set_aside, save_set_aside
from kdcache.store.shard import Shard, Tables, open_shard
from kdcache.store.texts import manifest_rows, objects, strings

Span = tuple[float | None, float | None]  # None: the source's own start or end
Opened = dict[str, tuple[Shard, Tables, list[Span]]]  # shard → its structure, its tables, the spans of its clips


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
    repaired: bool = False

    @property
    def ok(self) -> bool:
        """Whether everything in use is what was written."""
        return not (self.fresh or self.unreadable or self.foreign or self.lost or self.index)

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
        if self.fresh or self.unreadable or self.lost or self.index:
            return f"{foreign}, then {repair}, then {extract}"
        return f"{foreign}; a repair leaves them to you, and everything else is as it was written"


def verify(folder: StrPath, repair: bool = False, progress: bool = True) -> VerifyReport:
    """Hash every array of a cache again and compare with the digests in shards and index.

    Args:
        folder: the cache.
        repair: take damaged arrays out of use, so that the next ``extract`` redoes just those: a shard that cannot be
            opened is renamed to ``*.damaged``; single arrays are listed in ``damaged.csv``, which ``extract`` and
            ``reindex`` heed while the rest of their shard stays in use; both are dropped from ``manifest.csv``. A
            listed array that hashes right again (a shard restored from a copy) is taken back into the list of good
            ones, and ``reindex`` finds it. A missing or broken index is rebuilt.
        progress: show how far it is.

    Raises:
        StoreError: the folder is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder; name one that `kdcache extract` has filled.")
    report = VerifyReport(folder)
    before = set(load_set_aside(folder))
    paths = shard_files(folder)
    opened: Opened = {}
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
    report.set_aside = sorted(d for d in set(report.damaged) & before if d.place not in used)
    if repair:
        _repair(folder, report, opened, before)
    return report


def _changed(folder: Path) -> str:
    """Why the index is not what was written; empty when it is."""
    try:
        check_index(folder)
    except StoreError as error:
        return str(error)
    return ""


def _hash_shard(path: Path, report: VerifyReport) -> tuple[Shard, Tables, list[Span]]:
    """Compare every array of a shard with its digests, once its texts are known to make sense."""
    shard, tables = open_shard(path)
    clips = strings(path, tables, "clip")
    spans = [(row.get("start_s"), row.get("stop_s")) for row in manifest_rows(path, tables)]
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
    return shard, tables, spans


@dataclass
class _IndexCheck:
    """What the index's entries point at."""

    index: pd.DataFrame
    bad: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """stream → which rows point at nothing, at something else or at something damaged."""
    lost: list[Damage] = field(default_factory=list)
    used: set[tuple[str, str, int]] = field(default_factory=set)
    """Shard, stream and row of all entries."""


def _check_index(folder: Path, opened: Opened, report: VerifyReport) -> _IndexCheck:
    """Hold the index's entries against the shards as they were found; shards published since are not judged."""
    check = _IndexCheck(load_index(folder, edited=True))
    index, damaged = check.index, {d.place for d in report.damaged}
    for stream in indexed_streams(list(index.columns)):
        mask = np.zeros(len(index), bool)
        for name, part in index[index[f"{stream}:row"].notna()].groupby(f"{stream}:shard"):
            rows = part[f"{stream}:row"].tolist()
            check.used |= {(str(name), stream, row) for row in rows}
            known = name in opened or name in report.unreadable or name in report.foreign
            if not known and (folder / str(name)).exists():
                continue
            reasons = _misplaced(stream, str(name), part, opened)
            mask[part.index.to_numpy()] = [
                bool(r) or (name, stream, i) in damaged for r, i in zip(reasons, rows, strict=True)
            ]
            check.lost += [
                Damage(str(name), stream, int(i), clip, r)
                for r, i, clip in zip(reasons, rows, part["clip_id"], strict=True)
                if r and name not in report.unreadable and name not in report.foreign
            ]
        if mask.any():
            check.bad[stream] = mask
    return check


def _misplaced(stream: str, name: str, part: pd.DataFrame, opened: Opened) -> list[str]:
    """For each index row that names this shard, what is wrong with it; empty when all is well."""
    if name not in opened:
        return [f"{name} is not there"] * len(part)
    shard, tables, spans = opened[name]
    if stream not in shard.streams:
        return [f"{name} does not hold {stream}"] * len(part)
    keys, digests = (strings(shard.path, tables, f"{t}/{stream}") for t in ("key", "digest"))
    times = (part[c].astype(object).where(part[c].notna(), None).tolist() for c in ("start_s", "stop_s"))
    places = zip(*(part[f"{stream}:{p}"].tolist() for p in ("row", "key", "digest")), strict=True)
    reasons = []
    for (r, k, d), span in zip(places, zip(*times, strict=True), strict=True):
        if not 0 <= r < shard.clips or (keys[r], digests[r]) != (k, d):
            reasons.append(f"{name} holds something else there")
        else:
            reasons.append("" if spans[r] == span else f"{name} holds another span there")
    return reasons


def _repair(folder: Path, report: VerifyReport, opened: Opened, before: set[Damage]) -> None:
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
                drop_locations(folder, check.index, check.bad)
    report.repaired = True
