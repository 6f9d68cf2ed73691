"""Weights that were fitted on labelled clips: their facts are kept beside the shards, and leaks are told of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.files import atomic
from kdcache.splits import SPLIT, held_out_clips
from kdcache.streams.base import Stream, facts_of

if TYPE_CHECKING:
    import pandas as pd

    from kdcache.backbones.metadata import FitMetadata

FOLDER = "fitted"  # of a cache: <sha256 of the weights file>.json


def fitted_weights(streams: Sequence[Stream], weights: Mapping[str, Any]) -> dict[str, FitMetadata]:
    """SHA-256 → facts of every fitted weights file that the streams use."""
    found: dict[str, FitMetadata] = {}
    for stream in streams:
        sha256 = stream.recipe.get("backbone", {}).get("weights", {}).get("sha256")
        if sha256 is None or sha256 in found or stream.backbone is None:
            continue
        facts = facts_of(stream.backbone, weights.get(stream.backbone))
        if facts is not None:
            found[sha256] = facts
    return found


def keep_facts(out: Path, fitted: Mapping[str, FitMetadata]) -> None:
    """Write ``out/fitted/<sha256>.json`` for each file, so that training can tell of leaks without the weights."""
    from kdcache.store import clean

    clean(out / FOLDER)
    for sha256, facts in fitted.items():
        path = out / FOLDER / f"{sha256}.json"
        if path.exists():  # of the same bytes, so with the same facts
            continue
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(facts.to_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def leaks(rows: pd.DataFrame, fitted: Mapping[str, FitMetadata]) -> list[str]:
    """One sentence for each weights file that saw labels of clips which this manifest holds out.

    Every split column counts; the sentence names the first in which it happens, and the others behind it.
    """
    held_out = held_out_clips(rows)
    sentences = []
    for facts in fitted.values():
        seen = {column: sorted(clips.intersection(facts.fitted_on)) for column, clips in held_out.items()}
        columns = [column for column in seen if seen[column]]
        if columns:
            first, *others = columns
            by = "" if columns == [SPLIT] else f" by column {first}{f' and {len(others)} more' if others else ''}"
            sentences.append(
                f"{facts.backbone} was fitted on the labels of {len(seen[first])} clips that this manifest holds out"
                f"{by}, such as {seen[first][0]}: accuracy on them would be too good; fit it again on the training "
                f"clips of this manifest."
            )
    return sentences
