"""From settings and a cache to the ``Data`` that a method works on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdcache import runtime as devices
from kdcache.data.clips import clips
from kdcache.data.loader import cached_stream, feed, in_order
from kdcache.data.pairs import pairs
from kdcache.data.splits import Clips, split_by
from kdcache.errors import OptionError, WeightsError
from kdcache.methods import method as method_module
from kdcache.methods.contract import Data, Items
from kdcache.recipe import Recipe, digest
from kdcache.runs.config import Settings
from kdcache.runtime import resolve_device
from kdcache.store import Cache

Say = Callable[[str], None]
DIMENSIONS = {
    "pairs": (5, "feature maps [V, C, T, H, W]", "i3d-rgb/mixed4a"),
    "clips": (3, "a vector for each degree of progress [V, N, d]", "tsm/clip with --levels 10"),
}
"""What a method's examples are → dimensions of a usable stream, in words, and one to extract."""


@dataclass(frozen=True)
class Prepared:
    """A cache ready for a method."""

    data: Data
    clips: Clips
    recipes: dict[str, Recipe]
    """Of each stream that is read."""
    facts: dict[str, Any]
    """What was resolved, as ``config.toml`` keeps it; a run is only continued where it is the same."""


def prepare(settings: Settings, options: Any, say: Say, before: dict[str, Any] | None = None) -> Prepared:
    """Open the cache, join its examples, decide device, precision and where the streams are held.

    ``before`` is what an earlier call resolved (``facts``): the same is then used again, so that the numbers of a
    continued run do not depend on how much memory happens to be free.

    Raises:
        OptionError: no usable stream or examples, or settings that contradict each other.
        DeviceError: the device is not there.
        StoreError: the cache is damaged or mixes recipes.
    """
    before = before or {}
    kind = method_module(settings.method).SAMPLES
    device = resolve_device(before.get("device", settings.device))
    precision = devices.resolve_precision(before.get("precision", settings.precision), device)
    cache = Cache(settings.shards, settings.recipe or ())
    names = choose_streams(cache, settings.stream, kind)
    recipes = {name: cache.recipe(name) for name in names}
    cached = np.logical_and.reduce([cache.has(name) for name in names])
    rows = split_by(cache.clips, settings.split)
    if kind == "pairs":
        examples = pairs(rows, cached, options.tau, settings.validation, say)
    else:
        examples = clips(rows, cached, settings.validation, say)
    free = int(settings.hold * devices.free_bytes(device))
    budget = int(before.get("budget", free))
    stream = cached_stream(cache, names, examples.clip_ids, device, min(budget, free))
    say(f"{'+'.join(names)}: {len(examples.clip_ids)} clips, {stream.nbytes / 1e9:.2f} GB")
    say(f"{kind}: " + ", ".join(f"{split} {len(samples)}" for split, samples in examples.splits.items()))

    def batches(items: Items, size: int, view: int) -> Any:
        return feed(items, in_order(items, size, view), device)

    recipe = recipes[names[0]]
    data = Data(
        splits=examples.splits,
        classes=examples.classes,
        stream=stream,
        layer=str(recipe.get("backbone", {}).get("layer", "")),
        fitted=frozenset().union(*(_fitted_on(cache.path, r) for r in recipes.values())),
        seed=settings.seed,
        device=device,
        autocast=devices.autocast(device, precision),
        batches=batches,
        backbone=functools.cache(lambda: backbone_state(recipe, settings.weights)),
        say=say,
    )
    facts = {
        "device": str(device),
        "precision": precision,
        "stream": ",".join(names),
        "recipe": digest(recipe) if len(names) == 1 else digest(recipes),
        "samples": fingerprint(examples),
        "budget": budget,
    }
    return Prepared(data, examples, recipes, facts)


def choose_streams(cache: Cache, wanted: str | None, kind: str) -> list[str]:
    """The streams to train on: those named (joined by commas), or the only one that will do."""
    dimensions, what, example = DIMENSIONS[kind]
    usable = [s for s in cache.streams if cache.recipe(s)["layout"] == "fixed" and len(cache.shape(s)) == dimensions]
    if wanted is not None:
        names = [name.strip() for name in wanted.split(",")]
        for name in names:
            if name in cache.streams and name not in usable:
                raise OptionError(f"stream={name}: it does not hold {what}; choose from {', '.join(usable) or 'none'}.")
            cache.recipe(name)  # refuses an unknown one, with the nearest name
        if len(names) > 1 and kind == "pairs":
            raise OptionError(f"stream={wanted}: maps of several streams cannot be joined; name one.")
        return names
    if not usable:
        raise OptionError(
            f"{cache.path} does not hold {what} (it has {', '.join(cache.streams) or 'nothing'}): "
            f"run `kdcache extract` with a stream such as {example}."
        )
    if len(usable) > 1:
        raise OptionError(
            f"{cache.path} holds several feature streams: choose with stream={' or stream='.join(usable)}."
        )
    return usable


def _fitted_on(cache: Path, recipe: Recipe) -> list[str]:
    """Clips whose labels the stream's backbone has seen, by what extraction kept of the facts of its weights."""
    sha256 = recipe.get("backbone", {}).get("weights", {}).get("sha256")
    path = cache / "fitted" / f"{sha256}.json"
    if not path.exists():
        return []
    return [str(clip) for clip in json.loads(path.read_text())["fitted_on"]]


def backbone_state(recipe: Recipe, weights: str | None) -> dict[str, Tensor]:
    """State dict of the network that computed a stream.

    A random backbone is drawn again from its seed. A checkpoint is looked for where ``kdcache weights`` keeps them,
    or taken from ``weights``; its digest must be the one in the recipe.

    Raises:
        WeightsError: it cannot be found, or is another one.
    """
    from kdcache import backbones
    from kdcache.backbones.weights import find_digest

    if "backbone" not in recipe:
        raise WeightsError(
            f"{recipe['stream']} was imported, so the weights of its backbone are not known here: set init=random."
        )
    name, known = recipe["backbone"]["name"], recipe["backbone"]["weights"]
    file = weights or (find_digest(known["sha256"]) if "sha256" in known else known["spec"])
    advice = f"pass weights=PATH of the checkpoint with which {recipe['stream']} was computed, or set init=random."
    if file is None:
        raise WeightsError(f"The checkpoint of the cache (sha256 {known['sha256']}) is not on this machine: {advice}")
    if backbones.weights_id(name, file) != known:
        raise WeightsError(f"{file} is not the checkpoint of the cache, its digest differs: {advice}")
    return dict(backbones.build(name, file).state_dict())


def fingerprint(clips: Clips) -> str:
    """Digest of which examples, clips and labels there are in each split."""
    content = {
        split: [s.names, *(v.tolist() for v in (*s.rows.values(), *s.labels.values()))]
        for split, s in clips.splits.items()
    }
    text = json.dumps([clips.clip_ids, clips.classes, content])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def absolute(path: str | Path) -> str:
    """A path as runs store it."""
    return str(Path(path).expanduser().resolve())
