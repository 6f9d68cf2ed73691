"""The texts in a shard's tables: UTF-8, of which some are JSON; a stranger's may be anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kdcache.store.layout import damaged
from kdcache.store.shard import Tables

_SCALARS = (str, int, float, bool, type(None))


def strings(path: Path, tables: Tables, name: str) -> list[str]:
    """A table of fixed-length UTF-8.

    Raises:
        StoreError: it is not UTF-8.
    """
    try:
        return [value.decode() for value in tables[name].tolist()]
    except UnicodeDecodeError as error:
        raise damaged(path, f"its table {name!r} is not UTF-8") from error


def objects(path: Path, tables: Tables, name: str) -> list[dict[str, Any]]:
    """A table of JSON objects.

    Raises:
        StoreError: a text that is no JSON object.
    """
    found = []
    for row, text in enumerate(strings(path, tables, name)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise damaged(path, f"its table {name!r} has no JSON object in row {row}")
        found.append(value)
    return found


def manifest_rows(path: Path, tables: Tables) -> list[dict[str, Any]]:
    """The manifest rows of a shard's clips.

    Raises:
        StoreError: a row without an id or a source, or one whose values are no text or numbers.
    """
    rows = objects(path, tables, "row")
    for number, row in enumerate(rows):
        named = all(isinstance(row.get(c), str) and row[c] for c in ("clip_id", "source"))
        plain = all(isinstance(v, _SCALARS) and not (isinstance(v, float) and math.isinf(v)) for v in row.values())
        if not named or not plain or any(isinstance(row.get(c), (str, bool)) for c in ("start_s", "stop_s")):
            raise damaged(path, f"its table 'row' has no manifest row in row {number}")
    return rows
