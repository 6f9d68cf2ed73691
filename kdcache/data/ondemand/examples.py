"""From a manifest to what a fit trains on: clips that were read, their classes, and which of them are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kdcache.backbones import input_spec
from kdcache.data.clips import SIDE, clips
from kdcache.data.ondemand import skeletons, videos
from kdcache.data.ondemand.clips import Clip, Loaded, clips_of
from kdcache.data.prepare import fingerprint
from kdcache.data.splits import Clips, split_by
from kdcache.errors import OptionError
from kdcache.manifest import skeletons_of
from kdcache.methods.contract import HELD_OUT, UNLABELLED, Items, Samples, Stream
from kdcache.methods.fit_options import Options, Settings
from kdcache.methods.labels import keep_fraction
from kdcache.skeletons.image import limits_of
from kdcache.store.failures import Failure
from kdcache.views import Views

Say = Callable[[str], None]
Load = Callable[[Sequence[Clip]], Loaded[Any]]


@dataclass(frozen=True)
class Examples:
    """The clips of a fit."""

    clips: Clips
    target: str
    stream: Stream
    limits: tuple[float, float] | None
    """c_min and c_max of the training skeletons."""
    failures: list[Failure]
    used: dict[str, Tensor]
    """Of each split, which of its samples have a label that may be used, int64 ``[n]``."""

    @property
    def classes(self) -> list[int]:
        """The manifest's label of each output."""
        return self.clips.classes[self.target]

    @property
    def fingerprint(self) -> str:
        """Digest of which clips and labels there are in each split."""
        return fingerprint(self.clips)

    def names(self, split: str) -> list[str]:
        """Ids of the clips of a split whose labels are used."""
        return [self.clips.splits[split].names[i] for i in self.used.get(split, torch.empty(0)).tolist()]

    def items(self, split: str) -> Items:
        """These clips as the loop takes them."""
        samples, used = self.clips.splits[split], self.used[split]
        return Items({"x": (self.stream, samples.rows[SIDE][used])}, {"y": samples.labels[self.target][used]})


def gather(
    rows: pd.DataFrame, settings: Settings, options: Options, device: torch.device, budget: float, say: Say
) -> Examples:
    """Read the clips that take part.

    Of videos only those with a label in use are decoded; skeletons are read all. Which labels are kept is drawn among
    the clips that can be read, as ``train`` does; so it is drawn again when some cannot.

    Raises:
        OptionError: nothing labelled to train or to test on, no such split column, or labels of another kind than the
            target.
    """
    rows = split_by(rows, settings.split)
    is_skeleton = input_spec(settings.backbone).modality == "skeleton"
    known = clips_of(rows.assign(source=skeletons_of(rows)) if is_skeleton else rows, Path(settings.root))
    shown = _shown(settings, options)
    loaded: Loaded[Any] = Loaded()

    def load(some: list[Clip]) -> None:
        new: Loaded[Any]
        if is_skeleton:
            new = skeletons.load(some)
        else:
            new = videos.load(some, shown, budget - sum(shot.nbytes for shot in loaded.clips.values()))
        loaded.clips.update(new.clips)
        loaded.failures.extend(new.failures)

    while True:
        failed = {f.clip_id for f in loaded.failures}
        usable = ~rows["clip_id"].isin(failed).to_numpy(bool)
        table = clips(rows, usable, settings.validation, lambda _: None)
        target = _target(options, table)
        used = {
            s: _used(samples, s, target, options) for s, samples in table.splits.items() if s in ("train", *HELD_OUT)
        }
        ids = [
            name
            for split, index in used.items()
            for name in (table.splits[split].names if is_skeleton else [table.splits[split].names[i] for i in index])
        ]
        missing = [known[name] for name in ids if name not in loaded.clips]
        if not missing:
            break
        load(missing)
    clips(rows, usable, settings.validation, say)  # the same again, telling what is held out and left out
    row_of = {name: row for row, name in enumerate(table.clip_ids)}
    here = {row_of[name]: clip for name, clip in loaded.clips.items() if name in row_of}
    limits = limits_of([loaded.clips[name] for name in table.splits["train"].names]) if is_skeleton else None
    stream: Stream
    if limits is not None:
        stream = skeletons.SkeletonClips(here, limits, options, settings.seed, device)
    else:
        stream = videos.VideoClips(here, shown, options, settings.seed, device)
    say("clips with labels in use: " + ", ".join(f"{split} {len(index)}" for split, index in used.items()))
    return Examples(table, target, stream, limits, loaded.failures, used)


def _used(samples: Samples, split: str, target: str, options: Options) -> Tensor:
    """Which samples of a split have a label that may be used."""
    y = samples.labels[target]
    if split == "train":
        y = keep_fraction(y, options.label_fraction, options.label_seed)
    return (y != UNLABELLED).nonzero()[:, 0]


def _target(options: Options, table: Clips) -> str:
    """The column that holds the classes."""
    target = options.target
    if target == "auto":
        target = "label" if "label" in table.classes else "verb"
    if target not in table.classes:
        raise OptionError(f"target={target}: the manifest has none; it has {', '.join(table.classes)}.")
    labelled = {s: bool((samples.labels[target] != UNLABELLED).any()) for s, samples in table.splits.items()}
    if not labelled.get("train"):
        raise OptionError(f"target={target}: no training clip that can be read has one; check the manifest.")
    return target


def _shown(settings: Settings, options: Options) -> videos.Input:
    """What a backbone for videos is shown of a clip."""
    spec = input_spec(settings.backbone)
    size = options.size or spec.size
    views = Views(size, options.resize or (spec.resize if size == spec.size else None))
    return videos.Input(options.frames or spec.frames, options.fps, views, settings.decoder)
