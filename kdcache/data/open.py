"""From a cache and a method's inputs to the ``Data`` that the method works on."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcache import backbones, runtime
from kdcache.backbones.weights import as_recorded, find_digest
from kdcache.data.beside import cut_like, followed
from kdcache.data.clips import clips
from kdcache.data.inputs import Binding, bind
from kdcache.data.pairs import ROLES, pairs
from kdcache.data.quantised import open_stream
from kdcache.data.ragged import RaggedStream
from kdcache.data.shown_views import check_first_view, common_views
from kdcache.data.splits import Examples, named_splits, split_by, warn_of_unseen_classes
from kdcache.data.stream import CachedStream, JoinedStream, MemoryBudget, Part, Reader, is_ragged, view_count
from kdcache.data.training_data import TrainingData, batches_on, fingerprint
from kdcache.errors import OptionError, WeightsError
from kdcache.log import logger
from kdcache.methods.contract import VALIDATION, Data, Input, InputStream, Segment, SkeletonSegment
from kdcache.methods.labels import warn_if_fitted_on_training
from kdcache.recipe import Recipe, digest
from kdcache.store import Cache
from kdcache.store.fitted import clips_with_own_label, fitted_clips


class StreamPool:
    """The streams that runs of one process on one cache have in memory, and the budget that they share."""

    def __init__(self) -> None:
        self.nbytes = 0
        """What they may fill."""
        self.budget: MemoryBudget | None = None
        self.streams: dict[tuple[Any, ...], InputStream] = {}

    def open(self, nbytes: int) -> None:
        """Set the budget, the first time."""
        if self.budget is None:
            self.nbytes, self.budget = nbytes, MemoryBudget(nbytes)


def open_cache(
    shards: str | Path,
    inputs: Sequence[Input],
    *,
    stream: str | None = None,
    recipe: str | None = None,
    split_column: str = "split",
    validation: float = 0.2,
    validation_seed: int = 0,
    validation_as: str = VALIDATION,
    tau_s: float | None = None,
    memory_fraction: float = 0.6,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    before: Mapping[str, Any] | None = None,
    training: bool = True,
    pool: StreamPool | None = None,
) -> TrainingData:
    """Open the cache, find the inputs' streams and the examples, decide device, precision and where streams lie.

    Args:
        shards: folder of the cache.
        inputs: of the method.
        stream: which streams, where several would do; see ``kdcache.data.inputs.bind``.
        recipe: digest of the recipe to read, where a stream was extracted under several.
        split_column: column of the manifest that says which clips train, validate and test, or ``column=value``; see
            ``split_by``.
        validation: share of the labelled training examples to hold out where the manifest has none.
        validation_seed: of the order in which groups are held out; see ``hold_out``.
        validation_as: what clips of split ``validation`` count as; see ``split_by``.
        tau_s: anticipation time in seconds, where the pairs of a manifest have several.
        memory_fraction: share of the free memory that streams may fill; 0 reads every batch from the shards.
        weights: checkpoint of the backbone that made the streams, where it is not found by the recipe.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, fp32, bf16 or fp16.
        seed: of the run.
        before: what an earlier call resolved: the same is then used again, so that the numbers of a continued run do
            not depend on how much memory happens to be free.
        training: off, privileged inputs are left out and their streams are not opened.
        pool: streams that runs of this process on one cache share.

    Raises:
        OptionError: no usable stream or examples, or settings that contradict each other.
        DeviceError: the device is not there.
        StoreError: the cache is damaged or mixes recipes.
    """
    before = before or {}
    on = runtime.resolve_device(before.get("device", device))
    precision = runtime.resolve_precision(before.get("precision", precision), on)
    cache = Cache(shards, recipe or ())
    stream = before.get("stream", stream)
    read = [one for one in inputs if training or one.when == "always"]
    if not training:
        stream = stream_of(read, stream)  # what the other inputs read is not looked at
    bindings = bind(cache, read, stream)
    rows = split_by(cache.clips, split_column, validation_as)
    there = _there(cache, inputs, bindings, str(before.get("stream", stream or "")))
    examples = find_examples(cache, rows, there, tau_s, validation, validation_seed)
    if training:
        check_first_view(cache, bindings)
    free = int(memory_fraction * runtime.free_bytes(on))
    total = int(before.get("budget", free))
    pool = pool if pool is not None else StreamPool()
    pool.open(min(total, free))
    streams = open_streams(cache, bindings, examples.clip_ids, seed, on, pool)
    recipes = {name: cache.recipe(name) for binding in bindings for name in binding.streams}
    split_sizes = ", ".join(f"{split} {len(part)}" for split, part in examples.splits.items())
    logger.info("%s: %d clips; examples: %s", "+".join(recipes), len(examples.clip_ids), split_sizes)
    first = {one.name: cache.recipe(binding.streams[0]) for binding in bindings for one in binding.inputs}
    weights_of = [r.get("backbone", {}).get("weights", {}) for r in recipes.values()]
    fitted = frozenset(clip for its in weights_of for clip in fitted_clips(cache.path, its.get("sha256")))
    data = Data(
        splits=examples.splits,
        classes=examples.classes,
        clip_ids=examples.clip_ids,
        inputs=streams,
        roles={one.name: one.role for one in read},
        axes={one.name: binding.axes for binding in bindings for one in binding.inputs},
        ragged=frozenset(one.name for b in bindings if b.ragged for one in b.inputs),
        layers={name: str(r.get("backbone", {}).get("layer", "")) for name, r in first.items()},
        sizes={name: int(r["views"]["size"]) for name, r in first.items() if "size" in r.get("views", {})},
        sampled={name: _sampled(r) for name, r in first.items() if "sampling" in r},
        info={"imported": {name: r["imported"].get("sampling", {}) for name, r in first.items() if "imported" in r}},
        fitted=fitted,
        cross_fitted=fitted.difference(*(clips_with_own_label(cache.path, w) for w in weights_of)),
        seed=seed,
        device=on,
        autocast=runtime.autocast(on, precision),
        batches=batches_on(on),
        backbone=functools.cache(lambda name: backbone_state(first[name], weights)),
    )
    if training:
        warn_of_unseen_classes(examples)
        warn_if_fitted_on_training(data)
    resolved = {
        "device": str(on),
        "precision": precision,
        "stream": stream_text(bindings),
        "recipe": digest(next(iter(recipes.values()))) if len(recipes) == 1 else digest(recipes),
        "samples": fingerprint(examples),
        "budget": before.get("budget", pool.nbytes),
    }
    of_inputs = {
        one.name: digest(
            {
                "recipes": {n: recipes[n] for n in b.streams},
                "shown": _shown(streams[one.name]),
                "available": _numbers(streams[one.name].available),  # which held-out clips choose an epoch
            }
        )
        for b in bindings
        for one in b.inputs
    }
    return TrainingData(data, examples, resolved, recipes, of_inputs)


def _shown(stream: InputStream) -> list[Any]:
    """Which cached views a stream shows, and at whose frames: runs that differ in it do not share stages."""
    of = stream.parts[0] if isinstance(stream, JoinedStream) else stream
    return [of.view_of] if isinstance(of, CachedStream) else [getattr(of, "names", None), getattr(of, "follows", None)]


def _sampled(recipe: Recipe) -> str:
    """Which frames of a clip a stream of features was computed from, and at which size."""
    views = {name: recipe.get("views", {}).get(name) for name in ("size", "resize")}
    return json.dumps([recipe["sampling"], views], sort_keys=True)


def _numbers(mask: Tensor | None) -> list[int] | None:
    """Which rows there are; None: all."""
    return None if mask is None else mask.nonzero()[:, 0].tolist()


def stream_text(bindings: Sequence[Binding]) -> str:
    """The setting ``stream`` that leads to these bindings."""
    if len(bindings) == 1:
        return bindings[0].names
    return ",".join(f"{one.name}={name}" for b in bindings for one in b.inputs for name in b.streams)


def stream_of(inputs: Sequence[Input], stream: str | None) -> str | None:
    """The setting ``stream`` without what it says of other inputs."""
    names = {one.name for one in inputs}
    parts = (stream or "").split(",")
    return ",".join(p for p in parts if "=" not in p or p.partition("=")[0] in names) or None


def find_examples(
    cache: Cache,
    rows: pd.DataFrame,
    there: Mapping[Input, NDArray[np.bool_]],
    tau_s: float | None,
    validation: float,
    validation_seed: int = 0,
) -> Examples:
    """The examples of each split: those whose inputs are cached; privileged ones are asked of training examples alone.

    Args:
        cache: to which ``rows`` belong.
        rows: its manifest, with the splits in column ``split``.
        there: of each input which rows' clips are cached.
        tau_s: see ``open_cache``.
        validation: see ``open_cache``.
        validation_seed: see ``open_cache``.
    """
    roles = {one.role for one in there}
    in_pairs = roles <= set(ROLES)
    if not in_pairs and tau_s is not None:
        raise OptionError(f"tau_s={tau_s:g}: this method does not read pairs of clips; leave it out.")
    names = named_splits(rows)
    trains = np.ones(len(rows), bool) if names is None else names.isin(["train", ""]).to_numpy(bool)
    usable = np.ones(len(rows), bool)
    for one, has in there.items():
        needs = trains.copy() if one.when == "train" else np.ones(len(rows), bool)
        if in_pairs and "role" in rows:  # a pair trains when both its clips are there, also where one role is not read
            needs &= rows["role"].isin([one.role, *(set(ROLES) - roles)]).to_numpy(bool)
        usable &= ~needs | has
    if in_pairs:
        return pairs(rows, usable, tau_s, validation, validation_seed)
    return clips(rows, usable, validation, seed=validation_seed)


def _there(
    cache: Cache, inputs: Sequence[Input], bindings: Sequence[Binding], known: str
) -> dict[Input, NDArray[np.bool_]]:
    """Of each input which clips are cached; of privileged ones by the index alone, whose streams may not be opened."""
    names = {one: binding.streams for binding in bindings for one in binding.inputs}
    parts = [part.rpartition("=") for part in known.split(",") if part]
    found = {}
    for one in inputs:
        streams = names.get(one) or tuple(
            name for of, _, name in parts if of in ("", one.name) and name in cache.streams
        )
        masks = [cache.indexed(name) if one.when == "train" else cache.has(name) for name in streams]
        if masks:
            found[one] = np.logical_and.reduce(masks)
    return found


def open_streams(
    cache: Reader,
    bindings: Sequence[Binding],
    clip_ids: list[str],
    seed: int,
    device: torch.device,
    pool: StreamPool,
) -> dict[str, InputStream]:
    """The stream of each input, whose rows are these clips; inputs that share a binding share a stream."""
    features = [binding for binding in bindings if binding.inputs[0].segment is None]
    recipes = {s: cache.recipe(s) for binding in features for s in binding.streams}
    views = {s: view_count(cache, s) for s in recipes}
    shown, common = common_views(cache, features)
    if common and len(common) < max(views.values()):
        logger.info("views that all streams have: %s; the others are not read", ", ".join(common))
    if recipes and any(map(_beside, bindings)) and common is None and max(views.values()) > 1:
        raise OptionError("The features' views have no names, so frames cannot be cut like them: use one view.")
    streams: dict[str, InputStream] = {}
    for binding in bindings:
        there = np.logical_and.reduce([cache.indexed(name) for name in binding.streams])
        known = dict(zip(cache.clips["clip_id"].tolist(), there.tolist(), strict=True))
        available = torch.tensor([known[clip] for clip in clip_ids], dtype=torch.bool)
        mask = None if bool(available.all()) else available
        segment, names, follows = binding.inputs[0].segment, None, None
        if recipes and _beside(binding):
            assert isinstance(segment, Segment)
            names, follows = common or ["centre"], followed(cache, binding, features)
            if segment.augmentations:
                logger.info("%s is shown in the features' %d views, not augmented", binding.names, len(names))
            segment = cut_like(segment, list(recipes.values()))
        view_of = {s: shown[s] for s in binding.streams if s in shown}
        own = (seed, follows, tuple(names or ())) if segment else tuple(map(tuple, view_of.values()))
        key = (binding.streams, binding.order, segment, own, tuple(clip_ids), tuple(available.tolist()))
        if key not in pool.streams:
            pool.streams[key] = _stream(
                cache, binding, segment, clip_ids, mask, view_of, names, follows, seed, device, pool
            )
        stream = pool.streams[key]
        streams |= dict.fromkeys((one.name for one in binding.inputs), stream)
    return streams


def _beside(binding: Binding) -> bool:
    """Whether these are frames that are shown like the features beside them."""
    segment = binding.inputs[0].segment
    return isinstance(segment, Segment) and segment.beside


def _stream(
    cache: Reader,
    binding: Binding,
    segment: Segment | SkeletonSegment | None,
    clip_ids: list[str],
    available: Tensor | None,
    view_of: Mapping[str, list[int]],
    names: list[str] | None,
    follows: str | None,
    seed: int,
    device: torch.device,
    pool: StreamPool,
) -> InputStream:
    budget = pool.budget
    assert budget is not None
    if isinstance(segment, Segment):
        from kdcache.data.frames import CachedFrames  # loads OpenCV

        (name,) = binding.streams
        return CachedFrames(
            cache, name, clip_ids, segment, seed, device, available, names, binding.order, follows=follows
        )
    alone = len(binding.streams) == 1
    parts: list[Part] = []
    for name in binding.streams:
        if is_ragged(cache.recipe(name)):
            assert isinstance(cache, Cache)  # imported: no source is answered for, whose one clip has its place
            parts.append(RaggedStream(cache, name, clip_ids, device, budget, available, binding.order))
        else:
            where = (device, budget, available, view_of[name], binding.order)
            parts.append(open_stream(cache, name, clip_ids, *where, alone=alone))
    return parts[0] if len(parts) == 1 else JoinedStream(parts)


def backbone_state(recipe: Recipe, weights: str | None) -> dict[str, Tensor]:
    """State dict of the network that computed a stream.

    A random backbone is initialised again from its seed. A checkpoint is looked for where ``kdcache weights`` keeps
    them, or taken from ``weights``; its digest must be the one in the recipe.

    Raises:
        WeightsError: it cannot be found, or is another one.
    """
    if "backbone" not in recipe:
        raise WeightsError(
            f"{recipe['stream']} was imported, so the weights of its backbone are not known here: set init=random."
        )
    name, known = recipe["backbone"]["name"], recipe["backbone"]["weights"]
    file = weights or (find_digest(known["sha256"]) if "sha256" in known else known["spec"])
    advice = f"pass weights=PATH of the checkpoint with which {recipe['stream']} was computed, or set init=random."
    if file is None:
        raise WeightsError(f"The checkpoint of the cache (sha256 {known['sha256']}) is not on this machine: {advice}")
    if as_recorded(backbones.choose(name, file), known) is None:
        raise WeightsError(f"{file} is not the checkpoint of the cache, its digest differs: {advice}")
    return dict(backbones.build(name, file).state_dict())
