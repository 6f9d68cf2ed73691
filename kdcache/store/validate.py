"""What a shard takes: records that fit their recipes, and stream names that fit the format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.errors import StoreError
from kdcache.recipe import Recipe
from kdcache.store.layout import CHECKSUM, DTYPES, HEX, LAYOUTS, PER_STREAM, TABLES, Record
from kdcache.store.quantised import FIELD, Quantised
from kdcache.text import short

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
MOST_PARTS, LONGEST_NAME = 8, 200
"""Of a stream's name: readers walk no deeper into a shard (``hdf5_guard``)."""


def check_records(records: Sequence[Record], recipes: Mapping[str, Recipe]) -> None:
    """Refuse records that do not fit their recipes.

    Raises:
        StoreError: names the clip, the stream and what does not fit.
    """
    if not records or not recipes:
        raise StoreError("A shard needs at least one clip and one stream: hand in records and their recipes.")
    check_streams(recipes)
    ids = [r.clip_id for r in records]
    if len(set(ids)) != len(ids) or not all(i and not i.endswith("\0") for i in ids):
        raise StoreError("The clip ids of a shard must be unique and not empty: check the manifest.")
    for stream, recipe in recipes.items():
        layout, dtype = recipe.get("layout"), recipe.get("dtype")
        if layout not in LAYOUTS or dtype not in DTYPES or (layout == "jpeg" and dtype != "uint8"):
            raise StoreError(
                f"Stream {stream!r}: layout {layout!r} with dtype {dtype!r} cannot be stored; correct its recipe."
            )
        if FIELD in recipe and (layout, dtype) != ("fixed", "uint8"):
            raise StoreError(f"Stream {stream!r}: only a fixed uint8 stream can be quantised; correct its recipe.")
        shapes = set()
        for record in records:
            problem = _problem(record, stream, recipe)
            if problem:
                raise StoreError(f"Clip {record.clip_id!r}, stream {stream!r}: {problem}; this shard is not written.")
            shapes.add(_shapes(record.arrays[stream]) if layout == "fixed" else ())
        if len(shapes) > 1:
            raise StoreError(
                f"Stream {stream!r} is fixed, but its clips have shapes {sorted(shapes)}; use layout ragged."
            )
    for record in records:
        extra = (record.arrays.keys() | record.keys.keys()) - recipes.keys()
        if extra:
            raise StoreError(f"Clip {record.clip_id!r} has streams without a recipe: {', '.join(sorted(extra))}.")


def _problem(record: Record, stream: str, recipe: Recipe) -> str | None:
    payload, key, frames = record.arrays.get(stream), record.keys.get(stream, ""), record.frames.get(stream)
    if payload is None:
        return "no array was handed in"
    if len(key) != HEX or set(key) - set("0123456789abcdef"):
        return f"key {key!r} is not {HEX} hexadecimal digits"
    if frames is None or frames.ndim != 1 or frames.dtype != np.dtype("<i4"):
        return "its frame indices are not an int32 vector"
    if recipe["layout"] == "jpeg":
        return (
            None if isinstance(payload, list) and all(isinstance(b, bytes) for b in payload) else "not a list of bytes"
        )
    if isinstance(payload, list):
        return "a list was handed in where the recipe wants an array"
    if isinstance(payload, Quantised) != (FIELD in recipe):
        return "it is quantised and its recipe does not say so, or the other way round"
    if isinstance(payload, Quantised):
        return _quantised_problem(payload)
    if payload.dtype != np.dtype(recipe["dtype"]).newbyteorder("<"):
        return f"dtype is {payload.dtype}, its recipe says {recipe['dtype']}"
    if payload.ndim == 0 or (recipe["layout"] == "fixed" and payload.size == 0):
        return f"shape {payload.shape} cannot be stored"
    return None


def _quantised_problem(payload: Quantised) -> str | None:
    codes, scale, offset = payload.codes, payload.scale, payload.offset
    if (codes.dtype, scale.dtype, offset.dtype) != (np.dtype("u1"), np.dtype("<f4"), np.dtype("<f4")):
        return f"codes, scale and offset are {codes.dtype}, {scale.dtype} and {offset.dtype}, not uint8 and float32"
    pairs = zip(scale.shape, codes.shape, strict=False)
    fits = scale.ndim == codes.ndim and all(s in (1, c) for s, c in pairs)
    if not codes.size or not fits or offset.shape != scale.shape or scale.shape[0] != codes.shape[0]:
        return f"scale {scale.shape} and offset {offset.shape} do not fit codes {codes.shape}"
    finite = bool(np.isfinite(scale).all() and np.isfinite(offset).all() and np.isfinite(payload.error))
    return None if finite else "its scale, offset or error is not finite"


def _shapes(payload: Any) -> tuple[Any, ...]:
    """What all clips of a fixed stream share."""
    return (payload.shape, payload.scale.shape) if isinstance(payload, Quantised) else np.shape(payload)


def check_streams(names: Iterable[str]) -> None:
    """Refuse stream names that a shard cannot hold.

    Raises:
        StoreError: a name with odd characters, one of the format's own, or one that is another's parent.
    """
    taken = {*TABLES, *PER_STREAM, CHECKSUM, FIELD}
    names = list(names)
    for name in names:
        if len(name) > LONGEST_NAME or name.count("/") >= MOST_PARTS:
            raise StoreError(
                f"Stream {short(name)}: its name is too long; use at most {LONGEST_NAME} characters and {MOST_PARTS} "
                "parts, as in i3d-rgb/mixed4a."
            )
        if not _STREAM.fullmatch(name):
            raise StoreError(
                f"Stream {name!r}: use letters, digits and _.- with / between parts, as in i3d-rgb/mixed4a."
            )
        if name.split("/")[0] in taken:
            raise StoreError(
                f"Stream {name!r}: {name.split('/')[0]!r} is a table of the shard format; choose another name."
            )
        if any(other.startswith(f"{name}/") for other in names):
            raise StoreError(f"Stream {name!r} is the parent of another stream of its shard; choose another name.")
