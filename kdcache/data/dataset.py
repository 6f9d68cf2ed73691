"""A cache as a map-style dataset for training loops of one's own: ``kdcache.Cache(...).dataset(...)`` makes one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast, overload

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from kdcache.data.batch_loader import ThreadedLoader
from kdcache.data.inputs import align_views
from kdcache.data.selection import Selection
from kdcache.data.stream import CachedStream, MemoryBudget, Reader
from kdcache.errors import OptionError, StoreError, unknown
from kdcache.sampling import Sampling, within

Item = dict[str, Any]
RANDOM = "random"
CPU = torch.device("cpu")
BESIDE = ("clip_id", "pair", "view")  # what an item holds besides streams and targets


class ItemBatch(Sequence[Item]):
    """Items that were read together; each is made of their tensors when it is asked for.

    Attributes:
        columns: every entry of the items for all of them: a tensor whose first axis counts them, or a list.
    """

    def __init__(self, columns: dict[str, Any], count: int) -> None:
        self.columns, self._count = columns, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"item {index} of {self._count}")
        return {name: values[index] for name, values in self.columns.items()}


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """The ``collate_fn`` of a ``CacheDataset``: what was read as one batch is handed on without another copy.

    Lists of single items (of a ``ConcatDataset``, for example) go through torch's own ``default_collate``.
    """
    return items.columns if isinstance(items, ItemBatch) else cast(dict[str, Any], default_collate(list(items)))


class CacheDataset(Dataset[Item]):
    """Clips of a cache with class indices; an item is a dict of one clip:

    - the name of each stream: of features a tensor of one view, ``[...]``, or with ``view=None`` of all, ``[V, ...]``,
      in the dtype that ``Cache.read`` gives or in ``dtype``; of whole clips a tensor ``[T, ...]``, uint8
      ``[T, H, W, 3]`` for ``rgb``, with ``frames`` of so many frames, spread evenly.
    - the name of each target (``label``, ``verb``, ``noun``): class index, int64; −1 where the clip has none.
    - ``clip_id``, of pairs also ``pair``; ``view``: int64, unless all views are given.

    In batches (``__getitems__``, which a ``DataLoader`` calls) clips are read shard by shard into one tensor a stream;
    ``collate_fn=dataset.collate`` hands these on as they are. Whole clips without ``frames`` differ in length: they
    come as a list of tensors, which torch's default collate refuses. No file is open between calls: workers may be
    forked or spawned.

    Attributes:
        rows: the manifest's rows of the items, in their order, indexed by ``clip_id``.
        labels: of each target the class index of all items, int64 [n].
        classes: of each target the manifest's label of every class, the same for all splits.
        views: names of the views, as far as they are known; empty without a stream that has views.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        cache: Reader,
        streams: Sequence[str],
        selection: Selection,
        targets: Sequence[str],
        *,
        view: int | str | None = 0,
        frames: int | None = None,
        dtype: torch.dtype | None = None,
        of: str = "",
        pairs: bool = False,
    ) -> None:
        self.cache, self.streams, self.targets = cache, list(streams), list(targets)
        self.clip_ids, self.pairs = selection.clip_ids, selection.names if pairs else None
        self.labels = {t: selection.labels[t] for t in targets}
        self.classes = {t: selection.classes[t] for t in targets}
        self.rows: pd.DataFrame = cache.clips.set_index("clip_id").loc[self.clip_ids]
        self.frames, self.dtype, self._of = frames, dtype, of
        self._generator: torch.Generator | None = None  # torch's own
        taken = {*targets, *BESIDE} & set(streams)
        if taken:
            raise OptionError(f"Stream {min(taken)!r} has the name of another entry of an item: leave it out.")
        if frames is not None and frames < 1:
            raise OptionError(f"frames is {frames}: take at least 1 frame of a clip.")
        whole = [s for s in streams if cache.recipe(s)["layout"] != "fixed"]
        if frames is not None and not whole:
            raise OptionError(f"frames={frames}: {', '.join(streams)} holds no whole clips; leave frames out.")
        fixed = [s for s in streams if s not in whole]
        self._fixed, names = _aligned(cache, fixed, self.clip_ids)
        self._number_of_views = next((stream.views for stream in self._fixed.values()), 0)
        self.views = tuple(names or ())
        self.view = self._checked(view)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each stream of one shape for all clips, that of a view."""
        return {name: stream.shape for name, stream in self._fixed.items()}

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        shown = []
        for stream in self.streams:
            shape = list(self.shapes[stream]) if stream in self.shapes else "whole clips"
            shown.append(f"{stream} {shape} {self._dtype(stream)}".removesuffix(" None"))
        classes = [f"{len(found)} classes of {target}" for target, found in self.classes.items()]
        what = "; ".join([", ".join(shown), *([", ".join(classes)] if classes else [])])
        return f"<kdcache dataset of {self.cache.path}: {len(self)} clips{self._of}; {what}>"

    def __getitem__(self, index: int) -> Item:
        """One item; negative numbers count from the end. ``IndexError`` beyond it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self!r} has no item {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> ItemBatch:
        """Several items, read together."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        views = self._views(len(index))
        clips = [self.clip_ids[i] for i in index.tolist()]
        columns: dict[str, Any] = {}
        for name in self.streams:
            stream = self._fixed.get(name)
            columns[name] = self._clips(name, clips) if stream is None else self._read(stream, index, views)
        columns |= {target: values[index] for target, values in self.labels.items()}
        columns["clip_id"] = clips
        if self.pairs is not None:
            columns["pair"] = [self.pairs[i] for i in index.tolist()]
        if views is not None:
            columns["view"] = views
        return ItemBatch(columns, len(index))

    def loader(
        self, batch_size: int = 32, *, shuffle: bool = False, drop_last: bool = False, **options: Any
    ) -> ThreadedLoader:
        """A ``DataLoader`` of batches as ``collate`` makes them, read ahead by a thread: the fastest way to read.

        Args:
            batch_size: clips of a batch.
            shuffle: in random order, another one each epoch.
            drop_last: leave a smaller last batch out.
            options: others of ``DataLoader``, such as ``sampler`` or ``pin_memory``; it has no worker processes.
        """
        own = copy.copy(self)
        own._generator = torch.Generator()
        given: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
        given |= {"collate_fn": collate, "num_workers": 0, "generator": own._generator}
        if taken := given.keys() & options.keys():
            raise OptionError(f"{min(taken)}: loader reads in a thread and collates itself; use DataLoader for that.")
        return ThreadedLoader(own, **given, **options)

    def _checked(self, view: int | str | None) -> int | str | None:
        """The view's number where its name was given; ``OptionError`` for one that is not there."""
        count = self._number_of_views
        if not count:
            if view not in (None, 0):
                raise OptionError(
                    f"view={view}: {', '.join(self.streams)} holds whole clips, without views; leave it out."
                )
            return view
        if view is None or view == RANDOM:
            return view
        if isinstance(view, str):
            if view not in self.views:
                raise unknown("view", view, [*self.views, RANDOM])
            return self.views.index(view)
        if not 0 <= view < count:
            raise OptionError(f"view={view}: the streams have views 0 to {count - 1} in common; choose one of these.")
        return view

    def _views(self, count: int) -> Tensor | None:
        """The view of each of so many items; random ones from torch's generator, which each worker and epoch seeds."""
        if self.view is None or not self._number_of_views:
            return None
        if self.view == RANDOM:
            return torch.randint(0, self._number_of_views, (count,), generator=self._generator)
        return torch.full((count,), cast(int, self.view))

    def _read(self, stream: CachedStream, index: Tensor, views: Tensor | None) -> Tensor:
        if views is not None:
            read = stream.fetch(index, views, index)
        else:
            every = torch.arange(stream.views).repeat(len(index))
            rows = index.repeat_interleave(stream.views)
            read = stream.fetch(rows, every, rows)
            read = read.reshape(len(index), stream.views, *stream.shape)
        return self._cast(read, stream.name)

    def _clips(self, name: str, clips: list[str]) -> list[Tensor] | Tensor:
        if self.frames is None:
            return [self._cast(torch.from_numpy(array), name) for array in self.cache.read(name, clips)]
        shown = [self._spread(name, clip, self.frames) for clip in clips]
        shapes = {array.shape[1:]: clip for clip, array in zip(clips, shown, strict=True)}
        if len(shapes) > 1:
            (a, one), (b, other) = list(shapes.items())[:2]
            raise OptionError(
                f"{name}: frames of clip {one!r} are {list(a)} and those of {other!r} {list(b)}, which make no batch; "
                "leave frames out, or extract clips of one size."
            )
        return self._cast(torch.from_numpy(np.stack(shown)), name)

    def _casts(self, name: str) -> bool:
        """Whether ``dtype`` is for a stream: for features, whose whole clips are imported or floating-point."""
        is_feature = name in self._fixed or "imported" in self.cache.recipe(name) or self.cache.dtype(name).kind == "f"
        return self.dtype is not None and is_feature

    def _cast(self, read: Tensor, name: str) -> Tensor:
        return read.to(self.dtype) if self._casts(name) else read

    def _spread(self, name: str, clip: str, frames: int) -> NDArray[Any]:
        """The middle frame of each of so many equal parts of a clip."""
        length = self.cache.length(name, clip)
        if not length:
            raise StoreError(f"{self.cache.path}: clip {clip!r} has nothing in {name}; leave it or frames out.")
        times = np.arange(length, dtype=np.float64)
        wanted, places = np.unique(within(times, 0, length, np.nan, np.nan, Sampling(frames)), return_inverse=True)
        return np.asarray(self.cache.read_frames(name, clip, wanted)[places])

    def _dtype(self, stream: str) -> str:
        if self._casts(stream):
            return str(self.dtype).removeprefix("torch.")
        return str(self.cache.dtype(stream))


def _aligned(
    cache: Reader, streams: Sequence[str], clip_ids: Sequence[str]
) -> tuple[dict[str, CachedStream], Sequence[str] | None]:
    """The streams with the views that they have in common, and the names of these."""
    if not streams:
        return {}, None
    recipes = {s: cache.recipe(s) for s in streams}
    shown, names = align_views(recipes, {s: cache.shape(s)[0] for s in streams})
    return {s: CachedStream(cache, s, clip_ids, CPU, MemoryBudget(0), view_of=shown[s]) for s in streams}, names
