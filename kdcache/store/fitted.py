"""``fitted/<sha256>.json`` beside the shards: what backbone weights that ``kdcache fit`` wrote were fitted on.

``fitted/parts-<digest>.json`` says of cross-fitted weights which clip lies in which part. Training can so
find leaks of labels without the weights files. Each file holds its own digest (``kdcache.seals``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.errors import OptionError, StoreError
from kdcache.seals import read_json, write_json
from kdcache.store.commit import clean
from kdcache.store.layout import StrPath

FOLDER = "fitted"


def save_fitted(folder: StrPath, fitted: Mapping[str, Mapping[str, Any]]) -> None:
    """Write one file for each weights file; one that is there already is of the same bytes and stays.

    Args:
        folder: the cache.
        fitted: SHA-256 of the weights file → its ``FitMetadata`` as JSON (``to_json``).
    """
    clean(Path(folder) / FOLDER)
    for sha256, content in fitted.items():
        path = Path(folder) / FOLDER / f"{sha256}.json"
        if not path.exists():
            write_json(path, content)


def save_parts(folder: StrPath, assignment: str, parts: Sequence[Sequence[str]]) -> None:
    """Write which clips lie in which part of cross-fitted weights; ``assignment`` is the digest of that."""
    path = parts_file(folder, assignment)
    if not path.exists():
        write_json(path, {"parts": parts})


def fitted_clips(folder: StrPath, sha256: str | None) -> list[str]:
    """Ids of the clips whose labels moved the weights; none for weights that ``kdcache fit`` did not write.

    Args:
        folder: the cache.
        sha256: of the weights file, ``None`` for random weights.

    Raises:
        StoreError: the file is damaged.
    """
    path = Path(folder) / FOLDER / f"{sha256}.json"
    if sha256 is None or not path.exists():
        return []
    return [str(clip) for clip in _read(path, "fitted_on", "the metadata of fitted weights")]


def parts(folder: StrPath, assignment: str) -> list[list[str]]:
    """The clips of each part of cross-fitted weights.

    Raises:
        StoreError: the file is missing or damaged.
    """
    path = parts_file(folder, assignment)
    if not path.exists():
        raise StoreError(f"{path} is missing, which says what network computed a clip; run the same `kdcache extract`.")
    return [[str(clip) for clip in part] for part in _read(path, "parts", "the parts of cross-fitted weights")]


def clips_with_own_label(folder: StrPath, weights: Mapping[str, Any]) -> set[str]:
    """Ids of the clips that would be computed by a network which was fitted on their own label.

    Those are the clips that fitted weights have seen, but for cross-fitted ones, of which another network computes
    them.

    Args:
        folder: the cache.
        weights: of a recipe's backbone.

    Raises:
        StoreError: a file is missing or damaged.
    """
    seen = set(fitted_clips(folder, weights.get("sha256")))
    cross = weights.get("cross_fit")
    if cross is None:
        return seen
    for sha256, clips in zip(cross["parts"], parts(folder, cross["clips"]), strict=True):
        seen -= set(clips) - set(fitted_clips(folder, sha256))
    return seen


def parts_file(folder: StrPath, assignment: str) -> Path:
    """Where ``save_parts`` writes."""
    return Path(folder) / FOLDER / f"parts-{assignment}.json"


def _read(path: Path, field: str, what: str) -> list[Any]:
    remedy = "delete it and run the same `kdcache extract` again"
    try:
        return list(read_json(path, remedy)[field])
    except OptionError as error:
        raise StoreError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: not {what} ({error!r}); {remedy}.") from error
