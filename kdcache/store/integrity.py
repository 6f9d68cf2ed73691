"""``kdcache verify``: hash everything again, name what is damaged, and with ``repair`` take it out of use."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ManifestError, StoreError
from kdcache.progress import progress as progress_of
from kdcache.store.commit import QUARANTINED, shard_files
from kdcache.store.index import INDEX, drop_locations, indexed_streams, load_index
from kdcache.store.layout import DamagedShard, StrPath, row_digest
from kdcache.store.lock import locked
from kdcache.store.reader import Shard, StreamReader, open_shard
from kdcache.store.scan import reindex, strings
from kdcache.store.set_aside import Damage, load_set_aside, save_set_aside

_ADVICE = "run `kdcache verify {} --repair`, then the same `kdcache extract` again"


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
    """Of those, the ones that an earlier repair took out of use."""
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
        lines += [f"unreadable: {reason}" for reason in self.unreadable.values()]
        lines += [f"not used: {reason}" for reason in self.foreign.values()]
        lines += [f"lost: {d.stream} of clip {d.clip_id!r}: {d.reason}" for d in self.lost]
        lines += [f"index: {self.index}"] if self.index else []
        if self.set_aside:
            lines.append(f"{len(self.set_aside)} array(s) were set aside by an earlier repair")
        if self.ok:
            lines.append("all arrays in use are as they were written")
        elif self.repaired:
            lines.append("repaired: run the same `kdcache extract` again to redo what is missing")
        else:
            lines.append(_ADVICE.format(self.folder))
        return "\n".join(lines)


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
    opened: dict[str, tuple[Shard, dict[str, NDArray[Any]]]] = {}
    total = sum(p.stat().st_size for p in paths)
    with progress_of("verify", total, "B", shown=progress) as bar:
        for path in paths:
            try:
                shard, tables = open_shard(path)
            except DamagedShard as error:
                report.unreadable[path.name] = str(error)
            except StoreError as error:
                report.foreign[path.name] = str(error)
            else:
                opened[path.name] = shard, tables
                _hash_shard(shard, tables, report)
            bar.update(path.stat().st_size)
    report.shards = len(paths)
    report.set_aside = sorted(set(report.damaged) & before)
    bad = _check_index(folder, opened, report)
    if repair:
        _repair(folder, report, bad)
    return report


def _hash_shard(shard: Shard, tables: dict[str, NDArray[Any]], report: VerifyReport) -> None:
    """Compare every array of a shard with its digest."""
    clips = strings(tables["clip"])
    for stream in shard.streams:
        with StreamReader(shard, stream) as reader:
            for row, expected in enumerate(strings(tables[f"digest/{stream}"])):
                reason = "its bytes have changed since they were written"
                try:
                    payload = reader.row(row)
                    found = row_digest(payload)
                    report.bytes += sum(map(len, payload)) if isinstance(payload, list) else payload.nbytes
                except StoreError:
                    found, reason = "", "its bytes cannot be read"
                report.arrays += 1
                if found != expected:
                    report.damaged.append(Damage(shard.path.name, stream, row, clips[row], reason))


def _check_index(
    folder: Path, opened: dict[str, tuple[Shard, dict[str, NDArray[Any]]]], report: VerifyReport
) -> dict[str, NDArray[np.bool_]]:
    """Find index entries that point at nothing, at something else or at something damaged: masks by stream."""
    try:
        index = load_index(folder)
    except (StoreError, ManifestError) as error:
        report.index = str(error)
        return {}
    bad_arrays = {(d.shard, d.stream, d.row) for d in report.damaged}
    bad: dict[str, NDArray[np.bool_]] = {}
    for stream in indexed_streams(list(index.columns)):
        mask = np.zeros(len(index), bool)
        for name, part in index[index[f"{stream}:row"].notna()].groupby(f"{stream}:shard"):
            place = part.index.to_numpy()
            reason = _misplaced(stream, str(name), part, opened)
            rows = part[f"{stream}:row"].tolist()
            mask[place] = [bool(r) or (name, stream, i) in bad_arrays for r, i in zip(reason, rows, strict=True)]
            report.lost += [
                Damage(str(name), stream, int(i), clip, r)
                for r, i, clip in zip(reason, rows, part["clip_id"], strict=True)
                if r and name not in report.unreadable and name not in report.foreign
            ]
        if mask.any():
            bad[stream] = mask
    return bad


def _misplaced(
    stream: str, name: str, part: pd.DataFrame, opened: dict[str, tuple[Shard, dict[str, NDArray[Any]]]]
) -> list[str]:
    """For each index row that names this shard, what is wrong with it; empty when all is well."""
    if name not in opened:
        return [f"{name} is not there"] * len(part)
    shard, tables = opened[name]
    if stream not in shard.streams:
        return [f"{name} does not hold {stream}"] * len(part)
    keys, digests = (strings(tables[f"{t}/{stream}"]) for t in ("key", "digest"))
    found = zip(*(part[f"{stream}:{p}"].tolist() for p in ("row", "key", "digest")), strict=True)
    return [
        "" if 0 <= r < shard.clips and (keys[r], digests[r]) == (k, d) else f"{name} holds something else there"
        for r, k, d in found
    ]


def _repair(folder: Path, report: VerifyReport, bad: dict[str, NDArray[np.bool_]]) -> None:
    """Take everything damaged out of use."""
    for name in report.unreadable:
        os.rename(folder / name, folder / (name + QUARANTINED))
    save_set_aside(folder, report.damaged)
    if report.index and not report.foreign and any(shard_files(folder)):
        if (folder / INDEX).exists():
            os.replace(folder / INDEX, folder / (INDEX + QUARANTINED))
        reindex(folder)
    elif bad:
        with locked(folder):
            drop_locations(folder, bad)
    report.repaired = True
