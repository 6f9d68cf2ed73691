"""From settings and a cache to the ``Data`` that a method works on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcache.device import resolve_device
from kdcache.errors import OptionError, WeightsError
from kdcache.methods.contract import Data, Items
from kdcache.recipe import Recipe, digest
from kdcache.store import Cache
from kdcache.training import device as devices
from kdcache.training.config import Settings
from kdcache.training.feed import CachedStream, feed, in_order
from kdcache.training.pairs import Clips, pairs

Say = Callable[[str], None]
MAP = 5  # dimensions of a cached map: views, channels, time, height, width


@dataclass(frozen=True)
class Prepared:
    """A cache ready for a method."""

    data: Data
    clips: Clips
    stream: str
    recipe: Recipe
    facts: dict[str, Any]
    """What was resolved, as ``config.toml`` keeps it; a run is only continued where it is the same."""


def prepare(settings: Settings, tau: float | None, say: Say, before: dict[str, Any] | None = None) -> Prepared:
    """Open the cache, join its pairs, decide device, precision and where the stream is held.

    ``before`` is what an earlier call resolved (``facts``): the same is then used again, so that the numbers of a
    continued run do not depend on how much memory happens to be free.

    Raises:
        OptionError: no usable stream or pairs, or settings that contradict each other.
        DeviceError: the device is not there.
        StoreError: the cache is damaged or mixes recipes.
    """
    before = before or {}
    device = resolve_device(before.get("device", settings.device))
    precision = devices.resolve_precision(before.get("precision", settings.precision), device)
    cache = Cache(settings.shards, settings.recipe or ())
    name = choose_stream(cache, settings.stream)
    recipe = cache.recipe(name)
    clips = pairs(cache.clips, cache.has(name), tau, say)
    free = int(settings.hold * devices.free_bytes(device))
    budget = int(before.get("budget", free))
    stream = CachedStream(cache, name, clips.clip_ids, device, min(budget, free))
    say(f"{name}: {len(clips.clip_ids)} clips, {stream.nbytes / 1e9:.2f} GB")
    say("pairs: " + ", ".join(f"{split} {len(samples)}" for split, samples in clips.splits.items()))

    def batches(items: Items, size: int, view: int) -> Any:
        return feed(items, in_order(items, size, view), device)

    data = Data(
        splits=clips.splits,
        classes=clips.classes,
        stream=stream,
        layer=str(recipe.get("backbone", {}).get("layer", "")),
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
        "stream": name,
        "recipe": digest(recipe),
        "samples": _fingerprint(clips),
        "budget": budget,
    }
    return Prepared(data, clips, name, recipe, facts)


def choose_stream(cache: Cache, wanted: str | None) -> str:
    """The stream of maps to train on: the one named, or the only one."""
    usable = [s for s in cache.streams if cache.recipe(s)["layout"] == "fixed" and len(cache.shape(s)) == MAP]
    if wanted is not None:
        if wanted in cache.streams and wanted not in usable:
            raise OptionError(
                f"stream={wanted}: it holds no maps to train on; choose from {', '.join(usable) or 'none'}."
            )
        cache.recipe(wanted)  # refuses an unknown one, with the nearest name
        return wanted
    if not usable:
        raise OptionError(
            f"{cache.path} holds no feature maps (it has {', '.join(cache.streams) or 'nothing'}): "
            "run `kdcache extract` with a stream such as i3d-rgb/mixed4a."
        )
    if len(usable) > 1:
        raise OptionError(
            f"{cache.path} holds several feature streams: choose with stream={' or stream='.join(usable)}."
        )
    return usable[0]


def backbone_state(recipe: Recipe, weights: str | None) -> dict[str, Tensor]:
    """State dict of the network that computed a stream.

    A random backbone is drawn again from its seed. A checkpoint is looked for where ``kdcache weights`` keeps them,
    or taken from ``weights``; its digest must be the one in the recipe.

    Raises:
        WeightsError: it cannot be found, or is another one.
    """
    from kdcache import backbones
    from kdcache.backbones.weights import find_digest

    name, known = recipe["backbone"]["name"], recipe["backbone"]["weights"]
    file = weights or (find_digest(known["sha256"]) if "sha256" in known else known["spec"])
    advice = f"pass weights=PATH of the checkpoint with which {recipe['stream']} was computed, or set init=random."
    if file is None:
        raise WeightsError(f"The checkpoint of the cache (sha256 {known['sha256']}) is not on this machine: {advice}")
    if backbones.weights_id(name, file) != known:
        raise WeightsError(f"{file} is not the checkpoint of the cache, its digest differs: {advice}")
    return dict(backbones.build(name, file).state_dict())


def _fingerprint(clips: Clips) -> str:
    """Digest of which pairs, clips and labels there are in each split."""
    content = {
        split: [s.names, *(v.tolist() for v in (*s.rows.values(), *s.labels.values()))]
        for split, s in clips.splits.items()
    }
    text = json.dumps([clips.clip_ids, clips.classes, content])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def absolute(path: str | Path) -> str:
    """A path as runs store it."""
    return str(Path(path).expanduser().resolve())
