"""What the index of a cache says, column by column; which columns say where a clip lies.

``<stream>:shard``, ``<stream>:row``, ``<stream>:key`` and ``<stream>:digest`` are empty for a clip that the cache does
not hold. An index that is to the bit what kdcache has written is not checked again as a manifest is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import ManifestError, StoreError
from kdcache.manifest import REQUIRED, read_manifest, text_columns
from kdcache.manifest_numbers import NUMBERS, number_column
from kdcache.plain_csv import ListTable, PlainTable, TextTable, plain_table
from kdcache.store.commit import SHARD, shard_files
from kdcache.store.index_digest import INDEX, sealed_index
from kdcache.store.layout import HEX, StrPath
from kdcache.store.set_aside import places_set_aside

PARTS = ("shard", "row", "key", "digest")  # of an Entry

Place = tuple[str, int, str]  # shard, row, digest

_ROW = re.compile(r"[0-9]{1,9}(\.0)?")


def indexed_streams(columns: Sequence[str]) -> list[str]:
    """The streams that an index has columns for."""
    there = set(columns)
    names = [c.removesuffix(":shard") for c in columns if c.endswith(":shard")]
    return [s for s in names if all(f"{s}:{part}" in there for part in PARTS)]


def location_columns(columns: Sequence[str]) -> list[str]:
    """The columns of an index that say where clips lie; all others are the manifest's."""
    return [f"{s}:{part}" for s in indexed_streams(columns) for part in PARTS]


class Indexed:
    """The index of a cache as it was when it was opened; ``table`` are its cells."""

    def __init__(self, path: Path, table: TextTable, digest: str = "") -> None:
        self.path = path
        self.digest = digest
        """SHA-256 of the file, where kdcache has listed it."""
        self.table = table
        self.rows = table.rows
        self._kept: dict[str, Any] = {}
        self.streams = indexed_streams(table.names)
        columns = set(table.names)
        for stream in {c.rpartition(":")[0] for c in columns if c.rpartition(":")[2] in PARTS}:
            lacking = [part for part in PARTS if f"{stream}:{part}" not in columns]
            if 0 < len(lacking) < len(PARTS) - 1:
                raise broken(path, f"stream {stream!r} lacks its column {f'{stream}:{lacking[0]}'!r}")

    @classmethod
    def of(cls, folder: StrPath, *, edited: bool = False) -> Self | None:
        """The index of a folder, ``None`` where it has none; ``edited`` takes one that has changed since.

        Raises:
            StoreError: an index that is not what was written.
            ManifestError: it was edited into something else.
        """
        path = Path(folder) / INDEX
        if not index_exists(path):
            return None
        data, digest = (b"", "") if edited else sealed_index(path.parent)
        table: TextTable | None = plain_table(data) if digest else None
        if table is None or not set(REQUIRED) <= set(table.names):
            table = ListTable(text_columns(read_manifest(path, allow_absolute=True, complete=True)))  # not opened
        return cls(path, table, digest)

    @property
    def plain(self) -> PlainTable | None:
        """Its cells, where rows may be added behind them as text."""
        return self.table if isinstance(self.table, PlainTable) else None

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns, dtypes as ``load_index`` gives them."""
        return pd.DataFrame({column: self.column(column) for column in columns})

    def column(self, column: str) -> Any:
        """One of them; those of the manifest are kept."""
        if column not in self._kept:
            made = self._made(column)
            if column.rpartition(":")[0] in self.streams:
                return made
            self._kept[column] = made
        return self._kept[column]

    def _made(self, column: str) -> Any:
        stream, _, part = column.rpartition(":")
        if part == "row" and stream in self.streams:
            numbers = self.numbers(stream)
            return pd.arrays.IntegerArray(np.maximum(numbers, 0), numbers < 0)
        if part == "shard" and stream in self.streams:
            return pd.Series(self.shards(stream), dtype="str")
        texts = self.table.texts(column)
        if column not in NUMBERS:
            return pd.Series(texts, dtype="str")
        values, problems = number_column(column, texts, range(2, self.rows + 2))
        if problems:
            raise ManifestError(str(self.path), [f"line {number}: {text}" for number, text in problems])
        return values

    def rows_of(self, clip_ids: pd.Series[str]) -> NDArray[np.intp]:
        """Which row each clip has, -1 for one that is not there."""
        known, asked = self.column("clip_id").tolist(), clip_ids.tolist()
        return np.arange(self.rows) if known == asked else pd.Index(known, dtype=object).get_indexer(asked)

    def shards(self, stream: str) -> list[str]:
        """Of each row the shard that holds the stream's array, empty where none does."""
        names = self.table.texts(f"{stream}:shard")
        for name in set(names):
            if name and not SHARD.fullmatch(name):
                raise broken(self.path, f"{name!r} is not the name of a shard")
        return names

    def numbers(self, stream: str) -> NDArray[np.int64]:
        """Of each row that in its shard, -1 where it has none.

        ``3.0`` is what spreadsheets and pandas make of 3 beside empty cells.
        """
        if (quick := self.table.digits(f"{stream}:row")) is not None:
            return quick
        texts = self.table.texts(f"{stream}:row")
        distinct = set(texts)
        for text in sorted(distinct):
            if text and not _ROW.fullmatch(text):
                raise broken(self.path, f"a row of a shard is not a number ({text[:40]!r})")
        at = {text: int(text.removesuffix(".0") or -1) for text in distinct}
        return np.fromiter(map(at.__getitem__, texts), np.int64, len(texts))

    def holds(self, stream: str) -> bool:
        """Whether it has any array of a stream; that it names shards is seen to."""
        return any(self.shards(stream)) and bool((self.numbers(stream) >= 0).any())

    def keys(self, stream: str) -> NDArray[np.bytes_]:
        """Of each row the key of the stream's array, S32; empty where it is none."""
        return self.table.fixed(f"{stream}:key", HEX)

    def usable(self, stream: str) -> NDArray[np.bool_]:
        """Which rows have an array in a shard that exists, and that was not set aside."""
        numbers, names = self.numbers(stream), self.shards(stream)
        there = numbers >= 0
        there &= np.fromiter(map(self._there.__contains__, names), bool, len(names))
        if self._aside:
            places = zip(names, numbers.tolist(), strict=True)
            there &= np.fromiter(((s, stream, r) not in self._aside for s, r in places), bool, len(names))
        return there

    def pointed(self, stream: str) -> dict[str, int]:
        """Shard → how many of its rows the stream's entries point at."""
        numbers = self.numbers(stream)
        there = numbers >= 0
        codes, names = pd.factorize(np.array(self.shards(stream), object)[there])
        step = int(numbers.max(initial=0)) + 1
        counts = np.bincount(np.unique(codes * step + numbers[there]) // step, minlength=len(names))
        return dict(zip(map(str, names), counts.tolist(), strict=True))

    def place(self, stream: str, row: int) -> Place:
        """Where the array of a row lies, and its digest."""
        shard, number, _, digest = (self.table.cell(f"{stream}:{part}", row) for part in PARTS)
        return shard, int(number.removesuffix(".0")), digest

    @functools.cached_property
    def _there(self) -> set[str]:
        return {path.name for path in shard_files(self.path.parent)}

    @functools.cached_property
    def _aside(self) -> set[tuple[str, str, int]]:
        return places_set_aside(self.path.parent)


class PlacesByKey(Mapping[str, Place]):
    """Key → where the array of a stream lies, as the index says; of shards that exist, and not set aside."""

    def __init__(self, index: Indexed, stream: str) -> None:
        self._index, self._stream = index, stream
        self._rows = np.flatnonzero(index.usable(stream))
        self._keys = index.keys(stream)[self._rows]
        first = np.frombuffer(self._keys.tobytes(), np.uint64)[:: HEX // 8]
        self._order = np.argsort(first, kind="stable")
        self._first = first[self._order]

    def __getitem__(self, key: str) -> Place:
        wanted = key.encode()
        if len(wanted) != HEX:
            raise KeyError(key)
        first = np.frombuffer(wanted, np.uint64)[0]
        begin, end = (int(np.searchsorted(self._first, first, side)) for side in ("left", "right"))
        for at in reversed(self._order[begin:end].tolist()):  # the later row counts
            if self._keys[at] == wanted:
                return self._index.place(self._stream, int(self._rows[at]))
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in dict.fromkeys(self._keys.tolist()))

    def __len__(self) -> int:
        return len(set(self._keys.tolist()))

    def __bool__(self) -> bool:
        return len(self._rows) > 0


def index_exists(path: Path) -> bool:
    """Whether there is an index; what is no plain file would be waited for, or read without end."""
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: not a plain file; remove it and run `kdcache reindex {path.parent}`.")
    return path.exists()


def broken(path: Path, what: str) -> StoreError:
    """That the index cannot be used."""
    return StoreError(f"{path}: {what}; run `kdcache reindex {path.parent}`.")
