"""Weights that were fitted on labelled clips: which a run uses, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcache.backbones.crossfit import CrossFitWeights
from kdcache.backbones.metadata import FitMetadata, read_metadata
from kdcache.splits import SPLIT, TRAIN, held_out_clips
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import Stream

if TYPE_CHECKING:
    import pandas as pd

LOGITS = "logits"  # class scores are the one layer that networks of different feature spaces share


def fitted_weights(streams: Sequence[Stream]) -> dict[str, FitMetadata]:
    """SHA-256 → metadata of every fitted weights file that the streams use; of cross-fitted ones that of all clips,
    which has seen what the others have."""
    found: dict[str, FitMetadata] = {}
    for stream in streams:
        if not isinstance(stream, BackboneStream) or stream.weights.path is None:
            continue
        sha256 = stream.weights.identity()["sha256"]
        if sha256 not in found and (fit := read_metadata(stream.weights.path)) is not None:
            found[sha256] = fit
    return found


def part_weights(streams: Sequence[Stream]) -> dict[str, FitMetadata]:
    """SHA-256 → metadata of the weights of cross-fitted streams that were each fitted without a part of the clips."""
    found: dict[str, FitMetadata] = {}
    for cross in cross_fits(streams).values():
        for sha256, file in zip(cross.parts, cross.files, strict=True):
            if (fit := read_metadata(file)) is not None:
                found[sha256] = fit
    return found


def cross_fits(streams: Sequence[Stream]) -> dict[str, CrossFitWeights]:
    """Stream → its cross-fitted weights, of those that have such."""
    ours = (s for s in streams if isinstance(s, BackboneStream))
    return {s.name: s.weights.cross_fit for s in ours if s.weights.cross_fit is not None}


def incomparable(streams: Sequence[Stream]) -> list[str]:
    """One sentence for each stream of hidden layers of cross-fitted networks that have no feature space in common."""
    return [
        f"{s.name}: the {1 + len(cross.parts)} cross-fitted networks started from random weights, so that hidden "
        f"layers of two of them are comparable only in part, and a head that learns on one's reads another's worse; "
        f"class scores ({s.backbone}/{LOGITS}) mean the same in all, and so do more of the layers where fits start "
        f"from a checkpoint (init= or imagenet=)."
        for s in streams
        if isinstance(s, BackboneStream)
        and (cross := s.weights.cross_fit) is not None
        and cross.random_start
        and s.layer.lower() != LOGITS
    ]


def unknown_parts(rows: pd.DataFrame, streams: Sequence[Stream]) -> list[str]:
    """One sentence for each cross-fitted stream none of whose parts' clips is in a manifest that trains."""
    here = set(rows["clip_id"].tolist())
    trains = "split" not in rows or bool((rows["split"] == TRAIN).any())
    return [
        f"{name}: the networks were cross-fitted on clips of which none is in this manifest, so that the one of all "
        f"computes every clip; were they other names for the same clips, it would have seen their labels."
        for name, cross in cross_fits(streams).items()
        if trains and not here & cross.clips.keys()
    ]


def leaks(rows: pd.DataFrame, fitted: Mapping[str, FitMetadata]) -> list[str]:
    """One sentence for each weights file that saw labels of clips which this manifest holds out.

    Every split column counts; the sentence names the first in which it happens, and the others behind it.
    """
    held_out = held_out_clips(rows)
    sentences = []
    for fit in fitted.values():
        seen = {column: sorted(clips.intersection(fit.fitted_on)) for column, clips in held_out.items()}
        columns = [column for column in seen if seen[column]]
        if columns:
            first, *others = columns
            by = "" if columns == [SPLIT] else f" by column {first}{f' and {len(others)} more' if others else ''}"
            sentences.append(
                f"{fit.backbone} was fitted on the labels of {len(seen[first])} clips that this manifest holds out"
                f"{by}, such as {seen[first][0]}: accuracy on them would be too good; fit it again on the training "
                f"clips of this manifest."
            )
    return sentences
