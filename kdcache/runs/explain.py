"""What a run sees in one clip of a cache: the pictures of its method, and the frames that lie below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdcache.data.beside import stored_at
from kdcache.data.frames import CachedFrames
from kdcache.data.inputs import Binding, align_views, bind
from kdcache.data.open import StreamPool, open_streams, stream_of
from kdcache.engine import checkpoint
from kdcache.errors import OptionError, StoreError
from kdcache.log import logger
from kdcache.methods import METHODS, explained
from kdcache.methods import method as method_module
from kdcache.methods.contract import Batch, BatchSource, Input, InputStream
from kdcache.methods.pictures import Picture
from kdcache.numerics import full_precision
from kdcache.recipe import differences
from kdcache.runs.online.answer import class_names
from kdcache.runs.prepare import absolute
from kdcache.runs.run import Run
from kdcache.store import Cache
from kdcache.views import Views, cut, resize_short_side

RGB = "rgb"


@dataclass(frozen=True, eq=False)
class Explanation:
    """Pictures of one clip, from top to bottom, and what the network sees of it."""

    stage: str
    """Whose weights answer."""
    answer: str
    """The likeliest class and its probability; empty where it is not known."""
    pictures: list[Picture]
    frames: NDArray[np.uint8] | None
    """In view 0, RGB ``[F, S, S, 3]``; None where the cache has no frames."""
    numbers: NDArray[np.int32]
    """Source frames ``[F]`` from which the network's inputs are computed; empty where they are not known."""


def explain(run: Run, shards: str | Path, clip_id: str, which: str = "last") -> Explanation:
    """What a run sees in one clip, as the figures of its method's papers show it.

    Inputs are shown in view 0. Privileged inputs are given to the method too, so that a teacher's picture may stand
    beside the student's; those that the cache does not hold of the clip, or whose shards are gone, are left out with a
    warning.

    Args:
        run: a finished run.
        shards: folder of the cache that holds the clip; the streams that the run reads must be of the run's recipes.
        clip_id: any clip of the cache, of whatever split.
        which: ``last`` or ``best`` weights.

    Raises:
        OptionError: a run of a method without pictures, or one that has not finished; a clip that the cache lacks, or
            of which it lacks what the run reads; features of another recipe.
        StoreError: a damaged cache.
        WeightsError: weights that are missing or do not fit.
    """
    method = explained(run.settings.method)
    if method is None:
        have = " or ".join(name for name in METHODS if explained(name) is not None) or "another method"
        raise OptionError(
            f"{run.path} is a run of {run.settings.method}, which has no pictures of clips: choose a run of {have}."
        )
    if run.settings.shards != absolute(shards):
        run = run.on_cache(shards)
    predictor = run.predictor(which)
    clip = _Clip(run, shards, clip_id)
    batch, bindings = clip.read(list(predictor.inputs), predictor.role)

    def load(stage: str, module: nn.Module) -> nn.Module | None:
        trained = sorted(path.parent.name for path in run.path.glob(f"*/{checkpoint.SUMMARY}"))
        if stage not in trained:
            raise OptionError(f"{run.path} has no trained stage {stage!r}: it has {', '.join(trained)}.")
        summary = checkpoint.load_summary(run.path / stage) or {}
        weights = run.path / stage / summary.get("handed_on", checkpoint.LAST)
        if not weights.exists() and not run.settings.keep_stages:
            logger.warning("%s has not kept stage %s (keep_stages=false): its pictures are left out", run.path, stage)
            return None
        checkpoint.load_weights(weights, module)
        return module.to(data.device).eval()

    data = run.training_data.data
    with torch.no_grad(), full_precision(), data.autocast():
        pictures = method.explain(run.resolved_options, data, predictor, batch, load)
    return Explanation(predictor.stage, _answer(run, clip_id, which), pictures, *clip.frames(bindings, batch))


def _answer(run: Run, clip_id: str, which: str) -> str:
    """The likeliest class by name with its probability; empty for a clip that is not among the run's examples."""
    if clip_id not in run.training_data.examples.clip_ids:
        return ""
    row = run.predict([clip_id], which).iloc[-1]
    best = int(row.to_numpy().argmax())
    return f"{class_names(run, list(row.index))[best]} {row.iloc[best]:.2f}"


class _Clip:
    """One clip of a cache, as the inputs of a run read it."""

    def __init__(self, run: Run, shards: str | Path, clip_id: str) -> None:
        self.run, self.clip_id = run, clip_id
        self.cache = Cache(shards, run.settings.recipe or ())
        self.inputs = method_module(run.settings.method).inputs(run.resolved_options)
        self.streams: dict[str, InputStream] = {}
        self.trained_on = run.recipes
        self.pool = StreamPool()
        self.pool.open(0)  # each array is read once
        ids = self.cache.clips["clip_id"]
        if not (ids == clip_id).any():
            raise OptionError(f"{self.cache.path}: there is no clip {clip_id!r}; see clip_id in its manifest.csv.")
        self.row = int(np.flatnonzero(ids == clip_id)[0])

    def read(self, names: Sequence[str], role: str) -> tuple[Batch, list[Binding]]:
        """The inputs ``names``, other inputs of the same role as far as they are there, and where the former lie."""
        always = [one for one in self.inputs if one.when == "always"]
        bindings = [b for b in self._bind(always) if any(one.name in names for one in b.inputs)]
        batch = self._batch(bindings, names)
        for one in self.inputs:
            if one.name in names or one.role != role:
                continue
            try:
                both = always if one in always else [*always, one]  # shown in the views that both have
                batch[one.name] = self._batch(self._bind(both), [one.name])[one.name]
            except (OptionError, StoreError) as error:
                logger.warning("pictures of input %s are left out: %s", one.name, error)
        return batch, bindings

    def _bind(self, inputs: Sequence[Input]) -> list[Binding]:
        return bind(self.cache, inputs, stream_of(inputs, self.run.resolved.get("stream", self.run.settings.stream)))

    def _batch(self, bindings: Sequence[Binding], names: Sequence[str]) -> Batch:
        """These inputs in view 0, a batch of one."""
        for binding in bindings:
            if any(one.name in names for one in binding.inputs):
                for stream in binding.streams:
                    self._check(stream)
        data = self.run.training_data.data
        opened = open_streams(self.cache, bindings, [self.clip_id], data.seed, data.device, self.pool)
        self.streams |= {name: opened[name] for name in names}
        source = BatchSource({name: (opened[name], torch.zeros(1, dtype=torch.int64)) for name in names})
        (batch,) = data.batches(source, 1, 0)
        return batch

    def _check(self, stream: str) -> None:
        """Refuse a stream that lacks the clip, or of another recipe than the run was trained on."""
        if not self.cache.has(stream)[self.row]:
            raise OptionError(
                f"{self.cache.path}: clip {self.clip_id!r} has no {stream}, which the run reads: run `kdcache extract` "
                "with that stream."
            )
        recipe = self.cache.recipe(stream)
        changed = differences(self.trained_on.get(stream, recipe), recipe)
        if changed:
            raise OptionError(
                f"{self.cache.path}: {stream} is not what {self.run.path} was trained on ({'; '.join(changed)}): "
                "extract it as it was for the run."
            )

    def frames(self, bindings: Sequence[Binding], batch: Batch) -> tuple[NDArray[np.uint8] | None, NDArray[np.int32]]:
        """What the network sees of the clip, and the source frames: see ``Explanation``."""
        for binding in bindings:
            for one in binding.inputs:
                stream = self.streams.get(one.name)
                if isinstance(stream, CachedFrames) and stream.name == RGB:
                    seen = batch[one.name][0].permute([one.axes.index(letter) for letter in "THWC"])
                    numbers = self._source_frames(RGB)
                    known = len(numbers) == self.cache.length(RGB, self.clip_id)
                    return seen.cpu().numpy(), numbers[stream.shown(0)] if known else numbers[:0]
        features = {s: self.cache.recipe(s) for b in bindings if b.inputs[0].segment is None for s in b.streams}
        cropped = next((s for s, recipe in features.items() if recipe.get("views", {}).get("resize")), None)
        if cropped is None:
            return None, np.empty(0, np.int32)
        numbers = self._source_frames(cropped)
        if not len(numbers) or RGB not in self.cache.streams or not self.cache.has(RGB)[self.row]:
            return None, numbers
        wanted, places = np.unique(stored_at(self.cache, cropped, RGB, self.clip_id), return_inverse=True)
        _, names = align_views(features, {s: self.cache.shape(s)[0] for s in features})
        views = replace(Views.from_recipe(features[cropped]["views"]), names=((names or ["centre"])[0],))
        read = self.cache.read_frames(RGB, self.clip_id, wanted)
        shown = np.stack([resize_short_side(frame, views.short_side) for frame in read])
        return cut(shown[places], views)[0], numbers

    def _source_frames(self, stream: str) -> NDArray[np.int32]:
        return np.asarray(self.cache.frames(stream, [self.clip_id])[0], np.int32)
