"""What a short manifest leaves out and how it is filled in: clip ids from sources, class numbers from names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from kdcache.log import logger

Problem = tuple[int, str]  # (line or row number, sentence)
Columns = dict[str, list[str]]

CLASS = "class"  # column of the names behind ``label``, as in the manifests of data sets

_SUFFIX = re.compile(r"(\.tar)?\.[A-Za-z][A-Za-z0-9]{0,7}$")
_TIME = re.compile(
    r"(t_?)?(start|begin|from|stop|end|to)([_ ]?(s|t|sec|secs|seconds?|time|timestamp|frame|ms))?$", re.I
)


def resembling(column: str, columns: Sequence[str]) -> str | None:
    """The column that seems to be meant where an optional one is missing: taking it for another would be silent."""
    if column in ("start_s", "stop_s"):
        first = column == "start_s"
        likes = [c for c in columns if (m := _TIME.match(c)) and (m[2].lower() in ("start", "begin", "from")) == first]
        return next((c for c in likes if c not in ("start_s", "stop_s")), None)
    near = get_close_matches(column, [c.lower() for c in columns], n=1, cutoff=0.85)
    return next((c for c in columns if c.lower() == near[0]), None) if near else None


def clip_ids(sources: Sequence[str], starts: Sequence[str], stops: Sequence[str]) -> list[str]:
    """An id for each row: its source without suffix, and ``@start-stop`` behind it where the row has a span.

    An id is made of its own row alone, so it stays when rows are added, moved or removed. Sources that differ in their
    suffix alone, and rows of one source and span, get the same: whoever asks for ids has to refuse those.
    """
    return [
        (_SUFFIX.sub("", source) or source) + (f"@{_short(start)}-{_short(stop)}" if start or stop else "")
        for source, start, stop in zip(sources, starts, stops, strict=True)
    ]


def _short(seconds: str) -> str:
    """12.50 → 12.5, so that one time has one spelling; what is no number is refused elsewhere."""
    try:
        value = float(seconds)
    except ValueError:
        return seconds
    return str(int(value)) if value.is_integer() else repr(value)


def number_classes(columns: Columns) -> str | None:
    """Where ``label`` holds names: replace them by numbers in the names' sorted order, and keep them in ``class``.

    Names are told from numbers by all cells at once: one cell that reads as a number makes it a column of numbers.

    Returns:
        What is wrong, as a sentence; ``None`` where nothing is.
    """
    names = sorted({text.strip() for text in set(columns.get("label", []))} - {""})
    if not names or any(map(_numeric, names)):
        return None
    labels = [text.strip() for text in columns["label"]]
    if CLASS in columns and [text.strip() for text in columns[CLASS]] != labels:
        return "label holds class names, and so does the column class, others; remove one of the two"
    at = {name: str(i) for i, name in enumerate(names)}
    columns["label"] = [at.get(text, "") for text in labels]
    columns[CLASS] = labels
    shown = ", ".join(f"{i} {name}" for name, i in list(at.items())[:4]) + (", …" if len(at) > 4 else "")
    logger.info("label: %d class names are numbered in sorted order (%s); column class keeps them", len(at), shown)
    return None


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
