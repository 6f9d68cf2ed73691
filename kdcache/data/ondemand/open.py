"""From a manifest and its sources to the ``Data`` of a method whose input is made on demand, each source read once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kdcache import runtime
from kdcache.data.clips import clips
from kdcache.data.ondemand import skeletons, videos
from kdcache.data.ondemand.clips import Clip, Loaded, clips_of
from kdcache.data.ondemand.stream import OnDemand
from kdcache.data.splits import Examples, split_by, warn_of_unseen_classes
from kdcache.data.training_data import TrainingData, batches_on, fingerprint
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.manifest import skeletons_of
from kdcache.methods.contract import (
    HELD_OUT,
    UNLABELLED,
    VALIDATION,
    Data,
    Input,
    InputStream,
    Segment,
    SkeletonSegment,
    Split,
)
from kdcache.methods.labels import keep_fraction
from kdcache.methods.options import LabelOptions
from kdcache.roots import Roots
from kdcache.skeletons import JointLayout, open_skeleton
from kdcache.skeletons.image import limits_of
from kdcache.views import Views


def open_sources(
    rows: pd.DataFrame,
    roots: Roots,
    inputs: Sequence[Input],
    labels: LabelOptions,
    *,
    split_column: str = "split",
    validation: float = 0.2,
    validation_seed: int = 0,
    validation_as: str = VALIDATION,
    decoder: str = "auto",
    joint_layout: JointLayout | None = None,
    memory_fraction: float = 0.5,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    before: Mapping[str, Any] | None = None,
    workers: int | str = "auto",
) -> TrainingData:
    """Read the clips that take part; clips that cannot be read are listed in ``failures``.

    Of videos only those with a label in use are decoded; skeletons are read all. Which labels are kept is drawn among
    the clips that can be read, as ``train`` does; so it is drawn again when some cannot.

    Args:
        rows: of the manifest.
        roots: what sources are relative to.
        inputs: the method's one input, with a segment.
        labels: which labels are used.
        split_column: column that says which clips train, validate and test, or ``column=value``; see ``split_by``.
        validation: share of the labelled training clips to hold out where the manifest has none.
        validation_seed: of the order in which groups are held out; see ``hold_out``.
        validation_as: what clips of split ``validation`` count as; see ``split_by``.
        decoder: which decoder reads videos.
        joint_layout: of skeleton files that are arrays.
        memory_fraction: share of the free memory that decoded frames may fill.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16.
        seed: of the run.
        before: what an earlier call resolved.
        workers: threads that make the arrays of a batch, see ``runtime.decode_threads``.

    Raises:
        OptionError: nothing labelled to train or to test on, no such split column, or labels of another kind than the
            target.
    """
    before = before or {}
    (one,) = inputs
    on = runtime.resolve_device(before.get("device", device))
    precision = runtime.resolve_precision(before.get("precision", precision), on)
    free = memory_fraction * runtime.free_bytes(torch.device("cpu"))
    shown = one.segment if isinstance(one.segment, SkeletonSegment) else _shown(one, decoder)
    rows = split_by(rows, split_column, validation_as)
    examples, loaded = _read(rows, roots, shown, joint_layout, labels, validation, validation_seed, free)
    warn_of_unseen_classes(examples)
    row_of = {name: row for row, name in enumerate(examples.clip_ids)}
    here = {row_of[name]: clip for name, clip in loaded.clips.items() if name in row_of}
    available = torch.tensor([row in here for row in range(len(examples.clip_ids))], dtype=torch.bool)
    limits = None
    if isinstance(shown, SkeletonSegment):
        limits = limits_of([loaded.clips[name] for name in examples.splits["train"].names])
    stream = _stream(here, one, shown, limits, seed, on, None if bool(available.all()) else available)
    stream.workers = runtime.decode_threads(workers, on)
    data = _data(examples, one, stream, limits, seed, on, precision)
    resolved = {"device": str(on), "precision": precision, "samples": fingerprint(examples)}
    return TrainingData(data, examples, resolved, failures=loaded.failures)


@dataclass(frozen=True)
class OneClip:
    """What a run on the sources of a manifest answers from: one clip, row 0 of its input, which may be any source's."""

    opened: TrainingData
    shown: SkeletonSegment | videos.VideoInput
    joint_layout: JointLayout | None
    here: dict[int, Any]
    """What was read of row 0; empty before ``read``."""

    def read(self, clip: Clip) -> None:
        """Take another clip.

        Raises:
            SourceError, ClipError: it cannot be read, or its source has no such span.
        """
        if isinstance(self.shown, SkeletonSegment):
            self.here[0] = open_skeleton(clip.path, self.joint_layout).span(clip.start_s, clip.stop_s)
        else:
            self.here[0] = self.shown.decode(clip)


def open_one(
    rows: pd.DataFrame,
    roots: Roots,
    inputs: Sequence[Input],
    failed: Collection[str],
    *,
    split_column: str,
    validation: float,
    validation_seed: int,
    validation_as: str,
    decoder: str,
    joint_layout: JointLayout | None,
    device: str,
    precision: str,
    seed: int,
) -> OneClip:
    """What a run on the sources of a manifest needs to answer for one clip of any source.

    The manifest's clips are not read; of skeletons the training clips' joints are, for images are scaled by their
    limits.

    Args:
        rows: of the manifest.
        roots: what its sources are relative to.
        inputs: the method's one input, with a segment.
        failed: ids of the manifest's clips that could not be read when the run was trained.
        split_column, validation, validation_seed, validation_as, decoder, joint_layout, device, precision, seed: see
            ``open_sources``.
    """
    (one,) = inputs
    on = runtime.resolve_device(device)
    rows = split_by(rows, split_column, validation_as)
    readable = ~rows["clip_id"].isin(failed).to_numpy(bool)
    examples = clips(rows, readable, validation, quiet=True, seed=validation_seed)
    shown = one.segment if isinstance(one.segment, SkeletonSegment) else _shown(one, decoder)
    limits = None
    if isinstance(shown, SkeletonSegment):
        known = clips_of(rows.assign(source=skeletons_of(rows)), roots)
        train = [known[name] for name in examples.splits["train"].names]
        limits = limits_of(skeletons.load(train, joint_layout).clips.values())
    here: dict[int, Any] = {}
    stream = _stream(here, one, shown, limits, seed, on, None)
    data = _data(examples, one, stream, limits, seed, on, runtime.resolve_precision(precision, on))
    return OneClip(TrainingData(data, examples, {"samples": fingerprint(examples)}), shown, joint_layout, here)


def _stream(
    here: Mapping[int, Any],
    one: Input,
    shown: SkeletonSegment | videos.VideoInput,
    limits: tuple[float, float] | None,
    seed: int,
    device: torch.device,
    available: Tensor | None,
) -> OnDemand:
    if isinstance(shown, SkeletonSegment):
        assert limits is not None
        return skeletons.SkeletonClips(here, limits, shown, seed, device, available)
    assert isinstance(one.segment, Segment)
    return videos.VideoClips(here, shown, one.segment, seed, device, available)


def _data(
    examples: Examples,
    one: Input,
    stream: InputStream,
    limits: tuple[float, float] | None,
    seed: int,
    device: torch.device,
    precision: str,
) -> Data:
    return Data(
        splits=examples.splits,
        classes=examples.classes,
        clip_ids=examples.clip_ids,
        inputs={one.name: stream},
        roles={one.name: one.role},
        axes={one.name: one.axes},
        info={} if limits is None else {"limits": limits},
        seed=seed,
        device=device,
        autocast=runtime.autocast(device, precision),
        batches=batches_on(device),
        backbone=lambda name: {},
    )


def _read(
    rows: pd.DataFrame,
    roots: Roots,
    shown: SkeletonSegment | videos.VideoInput,
    joint_layout: JointLayout | None,
    labels: LabelOptions,
    validation: float,
    validation_seed: int,
    budget: float,
) -> tuple[Examples, Loaded[Any]]:
    """Read clips until all that take part have been read or have failed."""
    is_skeleton = isinstance(shown, SkeletonSegment)
    known = clips_of(rows.assign(source=skeletons_of(rows)) if is_skeleton else rows, roots)
    loaded: Loaded[Any] = Loaded()

    def load(some: list[Clip]) -> None:
        new: Loaded[Any]
        if isinstance(shown, SkeletonSegment):
            new = skeletons.load(some, joint_layout)
        else:
            new = videos.load(some, shown, budget - sum(clip.nbytes for clip in loaded.clips.values()))
        loaded.clips.update(new.clips)
        loaded.failures.extend(new.failures)

    while True:
        failed = {f.clip_id for f in loaded.failures}
        readable = ~rows["clip_id"].isin(failed).to_numpy(bool)
        examples = clips(rows, readable, validation, quiet=True, seed=validation_seed)
        target = target_of(labels, examples)
        used = {s: _used(split, s, target, labels) for s, split in examples.splits.items() if s in ("train", *HELD_OUT)}
        ids = [
            name
            for s, index in used.items()
            for name in (examples.splits[s].names if is_skeleton else [examples.splits[s].names[i] for i in index])
        ]
        missing = [known[name] for name in ids if name not in loaded.clips]
        if not missing:
            break
        load(missing)
    clips(rows, readable, validation, seed=validation_seed)  # once more, to log what is held out
    logger.info("clips with labels in use: %s", ", ".join(f"{split} {len(index)}" for split, index in used.items()))
    return examples, loaded


def _used(split: Split, name: str, target: str, labels: LabelOptions) -> Tensor:
    """Which examples of a split have a label that may be used."""
    y = split.labels[target]
    if name == "train":
        y = keep_fraction(y, labels.label_fraction, labels.label_seed)
    return (y != UNLABELLED).nonzero()[:, 0]


def target_of(labels: LabelOptions, examples: Examples) -> str:
    """The column that holds the classes."""
    target = labels.target
    if target == "auto":
        target = "label" if "label" in examples.classes else "verb"
    if target not in examples.classes:
        raise OptionError(f"target={target}: the manifest has none; it has {', '.join(examples.classes)}.")
    train = examples.splits.get("train")
    if train is None or not bool((train.labels[target] != UNLABELLED).any()):
        raise OptionError(f"target={target}: no training clip that can be read has one; check the manifest.")
    return target


def _shown(one: Input, decoder: str) -> videos.VideoInput:
    """What a backbone for videos is shown of a clip."""
    assert isinstance(one.segment, Segment)
    s = one.segment
    return videos.VideoInput(s.frames, s.fps, Views(s.size, s.resize), decoder)
