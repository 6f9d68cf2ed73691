"""``fitted/<sha256>.json`` beside the shards: what backbone weights that ``kdcache fit`` wrote were fitted on.

Training can so find leaks of labels without the weights files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import StoreError
from kdcache.files import atomic
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
            with atomic(path) as temporary:
                temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


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
    try:
        return [str(clip) for clip in json.loads(path.read_text(encoding="utf-8"))["fitted_on"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not the metadata of fitted weights ({error!r}); delete it and run the same `kdcache extract` "
            "again."
        ) from error
