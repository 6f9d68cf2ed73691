"""Recipes: all that determines a stream's bytes, in one canonical form, with the digests that name cached arrays.

A recipe is a plain JSON-able dict (``stream``, ``layout``, ``dtype``, ``version``, ``sampling``, ``views`` …). Two
extractions whose recipes have one digest write the same bytes for the same source and span.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

Recipe = dict[str, Any]

ENLARGE = "enlarge"
"""Field of the recipes of whole-clip streams: false where frames smaller than ``short_side`` keep their size, absent
where they are enlarged to it."""


FLOW_ENGINE = "flow_engine"
"""Field of the origins of clips: the engine that computed their flow. Where it is absent, there is no flow or it is of
``cpu``, the only engine of version 0.1."""

SAME_PIXELS = ("auto", "decord", "pyav")
"""Values of ``decoder`` that give the same pixels, to the bit; torchcodec's are within a bound of them."""


def canonical(recipe: Mapping[str, Any]) -> str:
    """The one JSON text of a recipe: sorted keys, no spaces, no NaN."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(recipe: Mapping[str, Any]) -> str:
    """The first 32 hex digits of the SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()[:32]


def clip_key(recipe_digest: str, fingerprint: str, start_s: float, stop_s: float) -> str:
    """Name of one cached array: digest of (recipe, source fingerprint, clip span); 32 hex digits.

    NaN for ``start_s`` or ``stop_s`` means the source's start or end, as in the manifest.
    """
    return key_of(recipe_digest, span_text(fingerprint, start_s, stop_s))


def span_text(fingerprint: str, start_s: float, stop_s: float) -> str:
    """What of a ``clip_key`` all streams share."""
    return f"{fingerprint}|{float(start_s)!r}|{float(stop_s)!r}"


def key_of(recipe_digest: str, span: str) -> str:
    """``clip_key``, given its ``span_text``."""
    return hashlib.sha256(f"{recipe_digest}|{span}".encode()).hexdigest()[:32]


def keys_of(recipe_digests: Iterable[str], spans: Iterable[bytes]) -> bytes:
    """``key_of`` for many, one after the other as ASCII; ``spans`` as bytes, the shorter of both ends it."""
    begun, made = dict[str, Any](), list[bytes]()
    for recipe_digest, span in zip(recipe_digests, spans, strict=False):
        if (known := begun.get(recipe_digest)) is None:
            known = begun[recipe_digest] = hashlib.sha256(f"{recipe_digest}|".encode())
        whole = known.copy()  # half the time of a new one for each
        whole.update(span)
        made.append(whole.digest()[:16])
    return b"".join(made).hex().encode()


def by_any_means(recipe: Mapping[str, Any]) -> Recipe:
    """The recipe whichever decoder of the same pixels, or engine of flow, was asked for by name.

    Decoders give the same pixels, or refuse the file; engines give flow within a stated bound (docs/gpu.md).
    """
    found = {**recipe, "decoder": "auto"} if recipe.get("decoder") in SAME_PIXELS else dict(recipe)
    if isinstance(found.get("flow"), Mapping):
        found["flow"] = {name: value for name, value in found["flow"].items() if name != "engine"}
    return found


def unenlarged(recipe: Mapping[str, Any]) -> Recipe:
    """The recipe that differs only in keeping the size of frames smaller than ``short_side``."""
    return {**recipe, ENLARGE: False}


def nothing_to_enlarge(recipe: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    """Whether the frames of a clip's source, of ``width`` × ``height`` pixels, are no smaller than ``short_side``.

    Its arrays are then the same under a recipe and under ``unenlarged`` of it.
    """
    return bool(min(origin.get("width", 0), origin.get("height", 0)) >= recipe.get("short_side", math.inf))


def differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two recipes differ, as ``field: a → b`` lines with dotted field names."""
    lines: list[str] = []
    for name in sorted(set(a) | set(b)):
        x, y = a.get(name), b.get(name)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            lines += differences(x, y, f"{prefix}{name}.")
        elif x != y:
            lines.append(f"{prefix}{name}: {x!r} → {y!r}")
    return lines
