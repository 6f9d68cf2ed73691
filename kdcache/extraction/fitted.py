"""Weights that were fitted on labelled clips: which a run uses, and warnings of leaked labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcache.backbones.metadata import FitMetadata, read_metadata
from kdcache.splits import SPLIT, held_out_clips
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.base import Stream

if TYPE_CHECKING:
    import pandas as pd


def fitted_weights(streams: Sequence[Stream]) -> dict[str, FitMetadata]:
    """SHA-256 → metadata of every fitted weights file that the streams use."""
    found: dict[str, FitMetadata] = {}
    for stream in streams:
        if not isinstance(stream, BackboneStream) or stream.weights.path is None:
            continue
        sha256 = stream.weights.identity()["sha256"]
        if sha256 not in found and (fit := read_metadata(stream.weights.path)) is not None:
            found[sha256] = fit
    return found


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
