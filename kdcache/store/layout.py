"""What goes into a shard: its tables and layouts, the records it is made of, the digest of one row."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import StoreError
from kdcache.store.quantised import Quantised

FORMAT = "kdcache/1"
QUANTISED_FORMAT = "kdcache/2"  # of shards with quantised streams, which earlier versions would read as plain bytes
FORMATS = (FORMAT, QUANTISED_FORMAT)
LAYOUTS = ("fixed", "ragged", "jpeg")
TABLES = ("clip", "row", "origin")  # one entry a clip
PER_STREAM = ("key", "digest", "frames")  # groups with one entry a clip and stream
CHECKSUM = "checksum"  # another, which shards of 0.1 lack
SPLITMIX = (0x9E3779B97F4A7C15, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), 31)  # step; shifts and factors
DTYPES = ("float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64")
HEX = 32  # digits of a key or digest

StrPath = str | os.PathLike[str]
Payload = NDArray[Any] | list[bytes] | Quantised  # one clip of one stream: an array, JPEG files one a frame, or bytes


@dataclass(frozen=True)
class Record:
    """Everything that is cached for one clip in one go."""

    clip: dict[str, Any]
    """The manifest row, JSON-able; has ``clip_id``."""
    origin: dict[str, Any]
    """Provenance, JSON-able: source fingerprint, decoder, codec …"""
    keys: dict[str, str] = field(default_factory=dict)
    """stream → key, 32 hex digits."""
    frames: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    """stream → source frame indices used, int32 [T]."""
    arrays: dict[str, Payload] = field(default_factory=dict)
    """stream → array ``[V, …]`` or ``Quantised`` (fixed), array of any shape (ragged), list of JPEG files (jpeg)."""

    @property
    def clip_id(self) -> str:
        """The manifest's ``clip_id``."""
        return str(self.clip["clip_id"])


class Entry(NamedTuple):
    """Where one clip of one stream lies."""

    shard: str  # file name in the cache folder
    row: int
    key: str
    digest: str


def row_digest(payload: Payload) -> str:
    """Digest of one clip of one stream: 32 hex digits of a SHA-256.

    Hashed is ``dtype|shape|`` in ASCII, for example ``<f2|1,480,8,14,14|``, then the little-endian bytes in C order;
    for JPEG ``jpeg|`` and the length of each file, for example ``jpeg|5120,5098|``, then the files; for bytes
    ``quantised|``, shapes of codes and scales, for example ``quantised|1,480,8,14,14|1,480,1,1,1|``, then codes, scales
    and offsets.
    """
    if isinstance(payload, list):
        head = f"jpeg|{','.join(str(len(b)) for b in payload)}|"
        return hash_parts([head.encode(), *payload])
    if isinstance(payload, Quantised):
        shapes = (",".join(map(str, part.shape)) for part in (payload.codes, payload.scale))
        head = f"quantised|{'|'.join(shapes)}|"
        return hash_parts(
            [head.encode(), *(raw_bytes(part) for part in (payload.codes, payload.scale, payload.offset))]
        )
    head = f"{payload.dtype.str}|{','.join(map(str, payload.shape))}|"
    return hash_parts([head.encode(), raw_bytes(payload)])


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def hash_parts(parts: Iterable[bytes | memoryview]) -> str:
    """32 hex digits of the SHA-256 of the concatenated parts."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:HEX]


def tables_digest(attributes: Sequence[str], tables: dict[str, NDArray[Any]]) -> str:
    """Digest over a shard's attributes and all its small tables, so that damage to them is found on opening."""
    parts: list[bytes | memoryview] = [a.encode() + b"\n" for a in attributes]
    for name in sorted(tables):
        table = tables[name]
        parts += [f"{name}|{table.dtype.str}|{table.shape}|".encode(), raw_bytes(table)]
    return hash_parts(parts)


class DamagedShard(StoreError):
    """A shard whose bytes are not what was written, or that is gone: ``verify --repair`` can set it aside."""

    what = ""
    """Which file and what is wrong with it, without what to do."""


def damaged(path: StrPath, what: str) -> DamagedShard:
    """The error for a shard that cannot be trusted, with what to do about it."""
    error = DamagedShard(
        f"{path}: {what}; run `kdcache verify {Path(path).parent} --repair`, then the same `kdcache extract` again."
    )
    error.what = f"{path}: {what}"
    return error
