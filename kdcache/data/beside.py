"""Frames beside cached features: cut as the features' crops are, and taken at the moments that the features saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcache.data.inputs import Binding
from kdcache.data.stream import Reader
from kdcache.errors import OptionError, StoreError
from kdcache.log import logger
from kdcache.methods.contract import Input, Segment
from kdcache.recipe import Recipe
from kdcache.sampling import Sampling
from kdcache.streams import axes_of


def cut_like(segment: Segment, recipes: Sequence[Recipe]) -> Segment:
    """A segment whose crops take the share of the frame that those of the features beside it take."""
    cuts = [r["views"] for r in recipes if r.get("views", {}).get("resize")]
    if segment.resize is not None or not cuts:
        return segment
    return replace(segment, resize=round(segment.size * cuts[0]["resize"] / cuts[0]["size"]))


def followed(cache: Reader, shown: Binding, features: Sequence[Binding]) -> str | None:
    """The stream of features at whose source frames an input of frames is shown.

    Args:
        cache: of all the streams.
        shown: the inputs of frames.
        features: the inputs of features that are read beside them.

    Returns:
        None where frames are spread evenly over the clip: beside imported features, of which no frames are known, and
        beside features of other clips.

    Raises:
        OptionError: features at N levels, or of another number of frames than the segment's; features that differ in
            their moments; or features that are not always read with the frames, and were not spread evenly.
    """
    segment, names = shown.inputs[0].segment, shown.names
    assert isinstance(segment, Segment)
    T, roles = segment.frames, {one.role for one in shown.inputs}
    readers: dict[str, list[Input]] = {}
    for binding in features:
        for stream in binding.streams:
            readers.setdefault(stream, []).extend(one for one in binding.inputs if one.role in roles)
    recipes = {stream: cache.recipe(stream) for stream, of in readers.items() if of}
    levels = [stream for stream, recipe in recipes.items() if "N" in (axes_of(recipe) or "")]
    rules = {s: Sampling.from_recipe(r["sampling"]) for s, r in recipes.items() if "sampling" in r and s not in levels}
    if not rules:
        if levels:
            count = cache.shape(levels[0])[1]
            raise OptionError(
                f"{levels[0]} holds {count} levels of progress, so {names} cannot be shown at its frames: extract "
                "features without --levels."
            )
        if recipes:
            logger.info("%s is spread evenly: the frames of %s are not known", names, ", ".join(recipes))
        return None
    fitting = {stream: rule for stream, rule in rules.items() if rule.frames == T}
    if not fitting:
        other, rule = next(iter(rules.items()))
        raise OptionError(
            f"{names} is shown at {T} frames, but {other} was computed from {rule.frames}: extract {other} with "
            f"--frames {T} or set frames={rule.frames}."
        )
    if len(set(fitting.values())) > 1:
        raise OptionError(
            f"{' and '.join(fitting)} were computed from different moments of a clip, so {names} cannot be shown at "
            "both: extract them with the same --fps and --anchor."
        )
    for stream in fitting:
        if all(any(_covers(reader, one) for reader in readers[stream]) for one in shown.inputs):
            return stream
    stream, rule = next(iter(fitting.items()))
    if rule != Sampling(T):
        raise OptionError(
            f"{names} is also shown where {stream} is not read (in prediction, or of the other clip of a pair), so it "
            f"is spread evenly, but {stream} was not: extract {stream} without --fps and --anchor."
        )
    return None


def _covers(reader: Input, frames: Input) -> bool:
    """Whether features are read whenever an input of frames is."""
    return reader.role == frames.role and (reader.when == "always" or frames.when == "train")


def stored_at(cache: Reader, features: str, frames: str, clip_id: str) -> NDArray[np.intp]:
    """Which frames of a clip of a whole-clip stream, by number from 0, are those from which features were computed.

    The nearest ones (of two, the earlier) where the whole-clip stream was extracted at a rate of its own.

    Args:
        cache: of both.
        features: a stream of features.
        frames: a whole-clip stream; of flow the frames from which fields lead.
        clip_id: which clip.

    Returns:
        int [T].

    Raises:
        StoreError: a stream of all frames that lacks one of them, or a clip that is not cached.
    """
    (wanted,), (stored,) = (cache.frames(name, [clip_id]) for name in (features, frames))
    later = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
    earlier = np.maximum(later - 1, 0)
    nearest: NDArray[Any] = np.where(wanted - stored[earlier] <= stored[later] - wanted, earlier, later)
    lacking = wanted[stored[nearest] != wanted]
    if len(lacking) and cache.recipe(frames).get("sampling", {}).get("fps") is None:
        raise StoreError(
            f"{cache.path}: clip {clip_id!r}: {features} was computed from frame {lacking[0]} of the source, which "
            f"{frames} lacks, so they are of different sources; run the same `kdcache extract` again for both."
        )
    return nearest.astype(np.intp)
