"""``Cache``: the arrays of a folder of shards, by stream and clip id."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdcache.errors import OptionError, StoreError, unknown
from kdcache.recipe import Recipe
from kdcache.store.failures import load_failures
from kdcache.store.index import open_index
from kdcache.store.indexed import location_columns
from kdcache.store.integrity import VerifyReport, verify
from kdcache.store.jpeg import decode_jpeg
from kdcache.store.layout import StrPath
from kdcache.store.opened import OpenedShards, origins
from kdcache.store.quantised import FIELD, Packing, read_dtype
from kdcache.store.recipes import Used, chosen_recipes, one_recipe, places_of_recipe, unfitting
from kdcache.store.shard import Shard
from kdcache.store.shard_list import listed_shards

_Part = tuple[Shard, list[int], list[int]]  # a shard, rows in it, and their positions among the clips asked for


@dataclass(frozen=True)
class _Places:
    """Where the clips of one stream lie."""

    shards: list[str]
    members: list[NDArray[np.intp]]  # of each shard: which of the cache's clips it holds
    recipes: list[str]  # of each shard: digest of the recipe that it should have
    codes: list[int]  # of each of the cache's clips: index into ``shards``, -1 where it is not cached; then one -1 …
    rows: list[int]  # … (of clips that the cache does not know), and row in that shard, -1 where it is not cached
    recipe: Recipe
    layout: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one clip of a fixed stream, [V, …]
    packing: Packing | None


class Cache:
    """Read access to a folder that ``kdcache extract`` has filled.

    Holds the index and paths only; no file stays open between calls, so a ``Cache`` may be pickled, forked and used
    from several threads. A shard is opened when a clip in it is first asked for, and held against the index then.

    Args:
        folder: the folder with ``manifest.csv`` and the shards.
        recipe: digest (or its first digits) of the recipe to read, or several, where a stream was extracted under
            more than one; streams without a match are read as they are.

    Raises:
        StoreError: no index, or no stream of that recipe.
    """

    def __init__(self, folder: StrPath, recipe: str | Sequence[str] = ()) -> None:
        self.path = Path(folder).absolute()  # a notebook may change its directory
        self._index = index = open_index(self.path)
        places = set(location_columns(index.table.names))
        self.clips: pd.DataFrame = index.frame([c for c in index.table.names if c not in places])
        """The manifest's rows, dtypes as ``read_manifest``."""
        self.streams: list[str] = [s for s in index.streams if index.holds(s)]
        """Streams of which at least one clip is cached, by name."""
        self._shards = OpenedShards(self.path)
        self._fitting: set[tuple[str, str]] = set()  # shard, stream: held against the index
        self._places: dict[str, _Places] = {}
        self._chosen = chosen_recipes(self.path, [recipe] if isinstance(recipe, str) else list(recipe), self.streams)

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        """clip_id → row of ``clips``."""
        return {clip: i for i, clip in enumerate(self.clips["clip_id"].tolist())}

    def recipe(self, stream: str) -> Recipe:
        """The recipe that all clips of a stream share, as ``shards.json`` says; a shard that it lacks is opened.

        Raises:
            OptionError: unknown stream.
            StoreError: the stream holds clips of more than one recipe; names the fields that differ and the shards.
        """
        return self._place(stream).recipe

    def shape(self, stream: str) -> tuple[int, ...]:
        """Shape of each clip of a fixed stream, (V, …).

        Raises:
            OptionError: a stream whose clips differ in shape.
        """
        places = self._place(stream)
        if places.layout != "fixed":
            raise OptionError(f"Stream {stream!r} has one shape a clip; read the clips and take theirs.")
        return places.shape

    def dtype(self, stream: str) -> np.dtype[Any]:
        """What ``read`` returns of a stream: its stored type, or float16 where it is quantised."""
        return self._place(stream).dtype

    def has(self, stream: str) -> NDArray[np.bool_]:
        """Which rows of ``clips`` are cached, bool [clips]."""
        return np.array(self._place(stream).rows) >= 0

    def indexed(self, stream: str) -> NDArray[np.bool_]:
        """Which rows of ``clips`` the index says are cached, bool [clips]; no shard is opened."""
        if stream in self._chosen:
            return self.has(stream)
        return self._index.numbers(stream) >= 0

    def digests(self, stream: str) -> list[str]:
        """Of each row of ``clips`` the digest of its array, as the index says; empty where it has none."""
        return self._index.table.texts(f"{stream}:digest")

    def length(self, stream: str, clip_id: str) -> int:
        """Frames, fields or motion maps of a clip of a whole-clip stream."""
        places = self._place(stream)
        if places.layout == "fixed":
            raise OptionError(f"Stream {stream!r} has one shape for all clips, no frames.")
        ((shard, (row,), _),) = self._by_shard(stream, [clip_id])
        stored = shard.stored(stream)
        if stored.frames is not None:
            offset = stored.frames[0]
            return int(offset[row + 1] - offset[row])
        assert stored.shapes is not None
        return int(stored.shapes[row][0])

    def shapes(self, stream: str, clip_ids: Sequence[str]) -> list[tuple[int, ...]]:
        """Shape of each clip's array of a ragged stream, in the order asked for; no array is read.

        Raises:
            OptionError: a stream of one shape for all clips, or of JPEG frames.
            StoreError: a clip that is not cached.
        """
        if (layout := self._place(stream).layout) != "ragged":
            raise OptionError(f"Stream {stream!r} is {layout}, not ragged: ask for its shape or length.")
        found: list[tuple[int, ...]] = [()] * len(clip_ids)
        for shard, rows, which in self._by_shard(stream, clip_ids):
            shapes = shard.stored(stream).shapes
            assert shapes is not None
            for row, i in zip(rows, which, strict=True):
                found[i] = tuple(shapes[row].tolist())
        return found

    def read_frames(self, stream: str, clip_id: str, frames: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Some frames of a clip of a whole-clip stream, by number from 0: [n, H, W, …]; of JPEG only these are decoded.

        Raises:
            OptionError: a stream of one shape for all clips.
            StoreError: a clip that is not cached, or a damaged shard.
        """
        if self._place(stream).layout == "fixed":
            raise OptionError(f"Stream {stream!r} has one shape for all clips, no frames.")
        ((shard, (row,), _),) = self._by_shard(stream, [clip_id])
        with self._shards.reader(shard, stream) as reader:
            payload = reader.row(row)
        if isinstance(payload, list):
            return decode_jpeg([payload[i] for i in frames.tolist()], shard.path)
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[frames])

    def read(
        self, stream: str, clip_ids: Sequence[str], view: int | None = None, out: NDArray[Any] | None = None
    ) -> Any:
        """Read clips, in the order asked for, each file's rows in the order in which they lie.

        Args:
            stream: one of ``streams``.
            clip_ids: any clips, in any order, repeated or not.
            view: one view of a fixed stream instead of all.
            out: array to read into, contiguous, of the right shape and dtype; made when absent.

        Returns:
            Fixed streams: [n, V, …], or [n, …] with ``view``; quantised ones as float16. Ragged streams: a list of
            arrays. ``rgb`` kept as JPEG: a list of uint8 [T, H, W, 3].

        Raises:
            OptionError: unknown stream or view, or an ``out`` that does not fit.
            StoreError: a clip that is not cached (says why, where ``failures.csv`` knows), or a damaged shard.
        """
        places = self._place(stream)
        by_shard = self._by_shard(stream, clip_ids)
        if places.layout != "fixed":
            if view is not None or out is not None:
                raise OptionError(f"Stream {stream!r} has no views and one shape a clip; leave out view and out.")
            return self._read_list(stream, len(clip_ids), by_shard)
        if view is not None and not 0 <= view < places.shape[0]:
            raise OptionError(f"Stream {stream!r} has views 0 to {places.shape[0] - 1}; {view} was asked for.")
        shape = (len(clip_ids), *(places.shape if view is None else places.shape[1:]))
        if out is None:
            out = np.empty(shape, places.dtype)
        elif out.shape != shape or out.dtype != places.dtype or not out.flags.c_contiguous:
            raise OptionError(f"out is {out.dtype} {out.shape}; a contiguous {places.dtype} {shape} is needed.")
        for shard, rows, which in by_shard:
            with self._shards.reader(shard, stream) as reader:
                reader.into(rows, which, out, view)
        return out

    def packing(self, stream: str) -> Packing | None:
        """How ``read_packed`` gives a quantised stream; ``None`` for any other."""
        self._place(stream)
        return self._places[stream].packing

    def read_packed(self, stream: str, clip_ids: Sequence[str], view: int, out: NDArray[np.uint8] | None = None) -> Any:
        """One view of clips of a quantised stream, not decoded: uint8 [n, nbytes] as ``packing`` says.

        Raises:
            OptionError: a stream that is not quantised.
            StoreError: as ``read``.
        """
        packing = self.packing(stream)
        if packing is None:
            raise OptionError(f"Stream {stream!r} is not quantised: read it with read.")
        out = np.empty((len(clip_ids), packing.nbytes), np.uint8) if out is None else out
        for shard, rows, which in self._by_shard(stream, clip_ids):
            with self._shards.reader(shard, stream) as reader:
                reader.pack(rows, which, out, view)
        return out

    def frames(self, stream: str, clip_ids: Sequence[str]) -> list[NDArray[np.int32]]:
        """Source frame indices from which each clip was computed, int32 [T] each, read-only."""
        found: list[Any] = [None] * len(clip_ids)
        for shard, rows, which in self._by_shard(stream, clip_ids):
            of_row = self._shards.frames(shard, stream)
            for row, i in zip(rows, which, strict=True):
                found[i] = of_row[row]
        return found

    def origin(self, clip_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Provenance of clips (source fingerprint, decoder …), as stored with the first stream that has each."""
        found: dict[str, dict[str, Any]] = {}
        for stream in self.streams:
            rows, number = self._place(stream).rows, self._number
            here = [c for c in clip_ids if c not in found and (i := number.get(c)) is not None and rows[i] >= 0]
            for shard, rows, which in self._by_shard(stream, here):
                held = origins(shard)
                found |= {here[i]: held[row] for row, i in zip(rows, which, strict=True)}
        lacking = [clip for clip in clip_ids if clip not in found]
        if lacking:
            raise StoreError(self._lacking("cached stream", lacking))
        return [found[clip] for clip in clip_ids]

    def verify(self, repair: bool = False) -> VerifyReport:
        """Hash everything again; see ``kdcache.store.integrity``."""
        return verify(self.path, repair=repair)

    def _read_list(self, stream: str, count: int, by_shard: Iterable[_Part]) -> list[NDArray[Any]]:
        found: list[Any] = [None] * count
        for shard, rows, which in by_shard:
            with self._shards.reader(shard, stream) as reader:
                for row, i in zip(rows, which, strict=True):
                    payload = reader.row(row)
                    found[i] = decode_jpeg(payload, shard.path) if isinstance(payload, list) else payload
        return found

    def _by_shard(self, stream: str, clip_ids: Sequence[str]) -> list[_Part]:
        """The shards that hold clips, with rows in the order in which they lie; every clip must be cached.

        Plain Python: a batch of large maps leaves the processor's caches cold, and numpy's calls would start slowly.
        """
        if isinstance(clip_ids, str):
            raise OptionError(f"clip_ids is a sequence of ids; write [{clip_ids!r}].")
        places = self._place(stream)
        number, codes, rows = self._number, places.codes, places.rows
        at = [number.get(clip, -1) for clip in clip_ids]
        found = sorted([(codes[n], rows[n], i) for i, n in enumerate(at)])
        if found and found[0][0] < 0:
            lacking = [clip for clip, n in zip(clip_ids, at, strict=True) if codes[n] < 0]
            raise StoreError(self._lacking(stream, lacking))
        parts: list[_Part] = []
        last, of_shard, which = -1, list[int](), list[int]()
        for code, row, i in found:
            if code != last:
                last, of_shard, which = code, [], []
                parts.append((self._shard(stream, code), of_shard, which))
            of_shard.append(row)
            which.append(i)
        return parts

    def _lacking(self, stream: str, clips: Sequence[str]) -> str:
        """Why clips are not there, as far as ``failures.csv`` says."""
        reasons = {failure.clip_id: f"{failure.stage}: {failure.reason}" for failure in load_failures(self.path)}
        first = f"{clips[0]!r}" + (f" (and {len(clips) - 1} more)" if len(clips) > 1 else "")
        if clips[0] in reasons:
            why, advice = f"failed ({reasons[clips[0]]})", "repair it and run `kdcache extract --retry-failed`"
        elif clips[0] in self._number:
            why, advice = f"has no {stream}", "run `kdcache extract` with that stream"
        else:
            why, advice = "is not in the index", "check the id, or extract the manifest that has it"
        return f"{self.path}: clip {first} {why}; {advice}."

    def _place(self, stream: str) -> _Places:
        """Where a stream lies, its recipe checked; shards are opened on the first call."""
        if stream not in self.streams:
            raise unknown("stream", stream, self.streams)
        if stream not in self._places:
            self._places[stream] = self._locate(stream)
        return self._places[stream]

    def _locate(self, stream: str) -> _Places:
        if stream in self._chosen:
            names, row = places_of_recipe(self.path, stream, self._chosen[stream], self.clips)
        else:
            names = np.array(self._index.shards(stream), object)
            row = self._index.numbers(stream)
        cached = np.flatnonzero(row >= 0)
        code, unique = pd.factorize(names[cached], sort=True)
        shards = [str(name) for name in unique]
        order = cached[np.argsort(code, kind="stable")]
        members = np.split(order, np.cumsum(np.bincount(code))[:-1]) if shards else []
        recipes, shapes = self._what_is_there(stream, shards)
        rows = [row[part] for part in members]
        first = one_recipe(self.path, stream, list(map(Used, shards, recipes, rows)), self._shards.get)
        stored = first.stored(stream)
        for name, shape in zip(shards, shapes, strict=True):
            if tuple(shape) != stored.shape:
                raise unfitting(self.path, name)
        codes = np.full(len(row) + 1, -1)
        codes[cached] = code
        recipe = first.recipes[stream]
        dtype = read_dtype(recipe) if FIELD in recipe else stored.dtype
        where = (shards, members, recipes, codes.tolist(), row.tolist())
        return _Places(*where, recipe, stored.layout, dtype, stored.shape, stored.packing)

    def _what_is_there(self, stream: str, shards: Sequence[str]) -> tuple[list[str], list[Sequence[int]]]:
        """Digest of the recipe and shape of a clip of a stream in each shard: as listed, else it is opened."""
        listed = listed_shards(self.path, shards)
        recipes, shapes = list[str](), list[Sequence[int]]()
        for name in shards:
            if (one := listed.get(name)) is not None and stream in one.recipes:
                recipes.append(one.recipes[stream])
                shapes.append(one.shapes[stream])
            else:
                stored = self._shards.get(name).stored(stream)
                recipes.append(stored.recipe)
                shapes.append(stored.shape)
        return recipes, shapes

    def _shard(self, stream: str, code: int) -> Shard:
        """A shard of a stream; when it is first asked for it is opened, and held against index and list."""
        places = self._places[stream]
        name = places.shards[code]
        if (name, stream) not in self._fitting:
            shard = self._shards.get(name)
            here, members = shard.stored(stream), places.members[code].tolist()
            rows = [places.rows[i] for i in members]
            assert here.digests is not None
            fits = max(rows) < shard.clips and here.recipe == places.recipes[code]
            fits = fits and (here.shape, here.packing) == (places.shape, places.packing)
            if fits and stream not in self._chosen:
                cell, column = self._index.table.cell, f"{stream}:digest"
                fits = [cell(column, i).encode() for i in members] == here.digests[rows].tolist()
            if not fits:
                raise unfitting(self.path, name)
            self._fitting.add((name, stream))
        return self._shards.get(name)
