"""``kdcache.Cache``: a folder of shards as notebooks and training loops of one's own use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from kdcache import store
from kdcache.errors import OptionError, StoreError
from kdcache.streams import axes_of

if TYPE_CHECKING:
    import torch

    from kdcache.data.dataset import CacheDataset


class TorchCache(store.Cache):
    """``kdcache.store.Cache`` with a length, a description, and datasets for torch."""

    def __len__(self) -> int:
        """Clips of the manifest."""
        return len(self.clips)

    def __bool__(self) -> bool:
        """True, of an empty cache too."""
        return True

    def __repr__(self) -> str:
        held = ", ".join(f"{stream} ({int(self.indexed(stream).sum())})" for stream in self.streams)
        return f"<kdcache.Cache {self.path}: {len(self)} clips; {held or 'nothing is cached'}>"

    def _repr_html_(self) -> str:
        """For notebooks: a row a stream with what its clips look like."""
        rows = [{"stream": s, "clips": int(self.indexed(s).sum())} | self._described(s) for s in self.streams]
        table = pd.DataFrame(rows, columns=["stream", "clips", "axes", "shape", "dtype"])
        head = pd.DataFrame([{"cache": str(self.path), "clips": len(self)}])
        return "\n".join(each.to_html(index=False, na_rep="") for each in (head, table))

    def _described(self, stream: str) -> dict[str, str]:
        try:
            recipe, dtype = self.recipe(stream), self.dtype(stream)
        except StoreError as error:  # recipes are mixed, or a shard is damaged: the table says so
            return {"shape": str(error)}
        fixed = recipe["layout"] == "fixed"
        shape = " × ".join(map(str, self.shape(stream))) if fixed else "one a clip"
        return {"axes": axes_of(recipe) or "not known", "shape": shape, "dtype": str(dtype)}

    def dataset(
        self,
        streams: str | Sequence[str],
        *,
        split: str | None = None,
        target: str | Sequence[str] | None = "label",
        view: int | str | None = 0,
        frames: int | None = None,
        dtype: torch.dtype | None = None,
        labelled: bool = True,
        split_column: str = "split",
        validation: float = 0.2,
        role: str | None = None,
        tau_s: float | None = None,
    ) -> CacheDataset:
        """Clips as a map-style ``torch.utils.data.Dataset``; ``kdcache.data.dataset`` says what an item holds.

            >>> clips = kdcache.Cache("out/").dataset("i3d-rgb/mixed4a", split="train", view="random")
            >>> DataLoader(clips, batch_size=32, shuffle=True, num_workers=2, collate_fn=clips.collate)

        Splits and class indices are those of ``kdcache train`` on the same streams.

        Args:
            streams: one or several, features and whole clips side by side; clips that lack one are left out.
            split: train, validation, test or another name in the manifest; ``None``: every clip.
            target: label, verb, noun, several of these, or ``None``: no labels.
            view: number or name of the view of features; ``random``: drawn for each item anew by torch's generator;
                ``None``: all, side by side. Of several streams only views that all of them have count.
            frames: of ``rgb``, ``flow`` and ``idt`` so many frames, spread evenly over the clip; ``None``: all.
            dtype: to which features are cast; ``None``: as ``read`` gives them, float16 for most.
            labelled: leave out clips that lack a label; otherwise their class index is −1.
            split_column: column of the manifest that says which clips train, validate and test, or ``column=value``:
                clips with that value test, the others train.
            validation: share of the labelled training clips that are held out, by group, subject or source, where
                the manifest names none for validation; 0 holds nothing out.
            role: of pairs of clips (anticipation), take the ``observed`` one or the ``action``, with the labels of the
                pair; ``None``: single clips, and of pairs the action.
            tau_s: anticipation time in seconds, where the pairs of the manifest have several.

        Raises:
            OptionError: an unknown stream, split, target or view, with the nearest; or nothing is left.
            StoreError: the cache is damaged, or a stream mixes recipes.
        """
        from kdcache.data.dataset import CacheDataset
        from kdcache.data.selection import select_clips, select_pairs, with_labels
        from kdcache.data.splits import split_by

        names = [streams] if isinstance(streams, str) else list(streams)
        targets = [target] if isinstance(target, str) else list(target or ())
        if not names or len(set(names)) < len(names) or len(set(targets)) < len(targets):
            raise OptionError("dataset needs at least one stream, and each stream and target named once.")
        rows, cached = split_by(self.clips, split_column), self.has(names[0])
        for name in names[1:]:
            cached = cached & self.has(name)
        if role is None and tau_s is not None:
            raise OptionError(f"tau_s={tau_s:g} chooses among pairs: say which of their clips with role=observed.")
        if role is None:
            found = select_clips(rows, cached, split, validation)
        else:
            found = select_pairs(rows, cached, split, validation, role, tau_s)
        found = with_labels(found, targets, labelled)
        if not found.names:
            where = "" if split is None else f" of split {split}"
            raise OptionError(f"{self.path}: no clip{where} has all of {', '.join([*names, *targets])}.")
        of = "".join([f", split {split}" if split else "", f", role {role}" if role else ""])
        options: dict[str, Any] = {"view": view, "frames": frames, "dtype": dtype}
        return CacheDataset(self, names, found, targets, **options, of=of, pairs=role is not None)


Cache = TorchCache  # as users know it; a class name occurs once in the package
