"""The manifest: a CSV with one row a clip, which says where the clip lies and what it shows.

Required is ``source`` alone (path relative to a data root). ``clip_id`` (unique) is made of the source where it is
missing; ``start_s`` and ``stop_s`` (seconds, half-open) are the source's start and end where they are missing or empty.
Optional: ``split``, ``label`` (whole numbers, or names, which are numbered), ``verb``, ``noun`` (whole numbers; empty =
unlabelled), ``subject``, ``group``, ``pair``, ``role``, ``skeleton`` (path of the clip's skeleton file where ``source``
is its video). Any other column is text and travels through untouched.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.csv_text import quoted_column
from kdcache.errors import ClipError, ManifestError
from kdcache.files import atomic
from kdcache.manifest_forms import Columns, Problem, clip_ids, number_classes, resembling
from kdcache.manifest_numbers import INTEGERS, NO_RATE, NUMBERS, TIMES, check_spans, convert, number_column, rate
from kdcache.plain_csv import plain_table
from kdcache.roots import Root, Roots, wrong_paths

REQUIRED = (
    "clip_id",
    "source",
    "start_s",
    "stop_s",
)  # of every manifest that has been read; files may leave all but one
LONGEST = {"clip_id": 1024, "source": 4096, "skeleton": 4096}  # characters; paths as Linux has them …
LONGEST_CELL = 100_000  # … and any other text; csv itself reads no more than 131,072
MOST_COLUMNS = 4096  # of a file, whose columns take time whatever they hold; an index has four more for each stream
NUMBERED = "numbered classes"
"""In ``attrs`` of a manifest whose labels were names, and mean something beside its own rows alone."""
RATE = "fps"  # column of the frame rates of folders and tars of pictures
SKELETON = "skeleton"  # column of skeleton files beside videos


def read_manifest(
    path: str | os.PathLike[str], root: Root = None, *, allow_absolute: bool = False, complete: bool = False
) -> pd.DataFrame:
    """Read and validate a manifest; whether its sources exist is left to the extraction, which lists those missing.

    Args:
        path: CSV file, UTF-8 (with or without byte order mark), comma-separated, with a header.
        root: the data root, or several; when given, sources that leave it through symbolic links are refused too.
        allow_absolute: sources may be absolute paths, too.
        complete: refuse a file without one of ``clip_id``, ``start_s``, ``stop_s`` instead of filling them in.

    Returns:
        One row a clip, in file order: ``start_s``, ``stop_s`` float64 (NaN = source's start, end), ``label``, ``verb``,
        ``noun`` Int64 (``<NA>`` = unlabelled), all other columns text. A ``clip_id`` that the file leaves out is the
        source without suffix, and ``@start-stop`` behind it where the row has a span. A ``label`` of names becomes
        their number in sorted order, and the names stand in ``class``.

    Raises:
        ManifestError: lists every bad row with its line number.
    """
    name = os.fspath(path)
    columns, lines, problems = _parse(name, math.inf if complete else MOST_COLUMNS)
    return _build(columns, lines, "line", problems, name, Roots.of(root, allow_absolute), complete)


def validate(
    df: pd.DataFrame, name: str = "manifest", root: Root = None, *, allow_absolute: bool = False
) -> pd.DataFrame:
    """Hold a DataFrame made in Python to the same contract as a file.

    Args:
        df: the rows; missing values may be ``None``, NaN or ``<NA>``, labels may be whole floats.
        name: what error messages call it.
        root, allow_absolute: as in ``read_manifest``.

    Returns:
        A copy with the dtypes of ``read_manifest``, filled in like it, and rows numbered from 0.

    Raises:
        ManifestError: lists every bad row by its position (the first is row 0).
    """
    columns = {str(c): _texts(df[c], str(c)) for c in df.columns.unique() if not isinstance(df[c], pd.DataFrame)}
    twice = sorted({str(c) for c in df.columns[df.columns.duplicated()]})
    problems = [(-1, f"column {c!r} appears twice; rename one") for c in twice]
    result = _build(columns, range(len(df)), "row", problems, name, Roots.of(root, allow_absolute))
    result.attrs = {**df.attrs, **result.attrs}
    return result


def write_manifest(df: pd.DataFrame, path: str | os.PathLike[str], *, allow_absolute: bool = False) -> None:
    """Write a manifest so that ``read_manifest`` gives back exactly these rows; atomic.

    Raises:
        ManifestError: ``df`` breaks the contract; nothing is written.
    """
    text = manifest_text(df, os.fspath(path), allow_absolute=allow_absolute)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def manifest_text(df: pd.DataFrame, name: str = "manifest", *, allow_absolute: bool = False) -> str:
    """What ``write_manifest`` writes; ``name`` stands in errors.

    Raises:
        ManifestError: ``df`` breaks the contract.
    """
    rows = validate(df, name, allow_absolute=allow_absolute)
    columns = [quoted_column([str(c), *_texts(rows[c], str(c))]) for c in rows.columns]
    return "\n".join([*map(",".join, zip(*columns, strict=True)), ""])


def text_columns(df: pd.DataFrame) -> Columns:
    """The cells of validated rows as they stand in a file, before they are quoted."""
    return {str(c): _texts(df[c], str(c)) for c in df.columns}


def _parse(name: str, most: float) -> tuple[Columns, Sequence[int], list[Problem]]:
    """The file as text: columns, the line on which each row starts, and rows that do not fit the header."""
    problems: list[Problem] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    header: list[str] = []
    line = 1
    try:
        if os.path.isfile(name) and (table := plain_table(Path(name).read_bytes())) is not None:
            _check_width(name, table.names, most)
            return {c: table.texts(c) for c in table.names}, range(2, table.rows + 2), problems
        with open(name, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not header:
                    header = row
                    _check_width(name, header, most)
                elif row and len(row) != len(header):
                    problems.append((line, f"has {len(row)} fields where the header has {len(header)}; quote commas"))
                elif row:
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ManifestError(name, [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from error
    except csv.Error as error:
        problems.append((line, f"is not valid CSV ({error}); check the quotes"))
    except OSError as error:
        raise ManifestError(name, [f"cannot be opened ({error.strerror}); check the path"]) from error
    if not header:
        raise ManifestError(name, ["is empty; the first line must name the columns, source and others"])
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise ManifestError(name, [f"line 1: columns are separated by {word}; save it separated by commas"])
    problems += [(1, f"column {c!r} appears twice; rename one") for c, n in sorted(Counter(header).items()) if n > 1]
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)) if rows else {c: [] for c in header}
    return columns, lines, problems


def _check_width(name: str, header: Sequence[str], most: float) -> None:
    if len(header) > most:
        more = f"has {len(header):,} columns, more than the {most:,} that a manifest may have"
        raise ManifestError(name, [f"{more}; leave out those that say nothing of the clips"])


def skeletons_of(manifest: pd.DataFrame) -> pd.Series[str]:
    """The skeleton file of each clip: its ``skeleton`` where it has one, else its ``source``."""
    if SKELETON not in manifest:
        return manifest["source"]
    return manifest[SKELETON].where(manifest[SKELETON] != "", manifest["source"])


def _build(
    columns: Columns,
    numbers: Sequence[int],
    word: str,
    problems: list[Problem],
    name: str,
    roots: Roots,
    complete: bool = False,
) -> pd.DataFrame:
    """Check all columns, fill in what is missing, then give them their types; ``numbers`` are what users call rows."""
    made = "clip_id" not in columns
    unnamed = "source" not in columns
    columns, found = _filled_in(columns, len(numbers), word, complete)
    problems += found
    problems += _check_ids(columns["clip_id"], numbers, word, made)
    problems += [] if unnamed else _check_sources(columns["source"], numbers, roots)
    joints = [(text, number) for text, number in zip(columns.get(SKELETON, []), numbers, strict=False) if text.strip()]
    problems += _check_sources([text for text, _ in joints], [number for _, number in joints], roots)
    given = columns.get("label")
    if (wrong := number_classes(columns)) is not None:
        problems.append((1 if word == "line" else -1, wrong))
        columns["label"] = [""] * len(numbers)
    typed: dict[str, Any] = {}
    for column, texts in columns.items():
        if column in NUMBERS:
            typed[column], bad = number_column(column, texts, numbers)
        else:
            typed[column], bad = texts, _check_text(column, texts, numbers)
            if column == RATE and roots.folders:  # sources will be read; where none is, the column is text
                bad += convert(column, texts, numbers, rate, None)[1]
        problems += bad
    if "start_s" in typed and "stop_s" in typed:
        problems += check_spans(typed["start_s"], typed["stop_s"], numbers)
    if problems:
        problems.sort(key=lambda p: p[0])
        raise ManifestError(name, [text if n < 0 else f"{word} {n}: {text}" for n, text in problems])
    dtypes = dict.fromkeys(TIMES, "float64") | dict.fromkeys(INTEGERS, "Int64")
    rows = pd.DataFrame({c: pd.Series(v, dtype=dtypes.get(c, "str")) for c, v in typed.items()})
    if columns.get("label") is not given:
        rows.attrs[NUMBERED] = True
    return rows


def _filled_in(columns: Columns, rows: int, word: str, complete: bool) -> tuple[Columns, list[Problem]]:
    """The columns with those that every manifest has in front where one was missing, and what forbids to add it."""
    missing = [column for column in REQUIRED if column not in columns]
    if not missing:
        return dict(columns), []
    header = 1 if word == "line" else -1
    problems: list[Problem] = []
    filled: Columns = {column: columns.get(column, [""] * rows) for column in REQUIRED} | columns
    for column in missing:
        if column == "source" or complete:
            near = get_close_matches(column, list(columns), n=1)
            hint = f" (is it {near[0]!r}?)" if near else f" (found: {', '.join(columns)})"
            problems.append((header, f"required column {column!r} is missing{hint}"))
        elif (like := resembling(column, list(columns))) is not None:
            unit = "; times are in seconds" if column in TIMES else ""
            problems.append((header, f"column {column!r} is missing (is it {like!r}?); rename that one{unit}"))
    if "clip_id" in missing:
        filled["clip_id"] = clip_ids(filled["source"], filled["start_s"], filled["stop_s"])
    return filled, problems


def _check_ids(ids: Sequence[str], numbers: Sequence[int], word: str, made: bool) -> list[Problem]:
    """``made``: of sources, whose own problems are found elsewhere."""
    if len(set(ids)) == len(ids) and all(map(str.strip, ids)) and "".join(ids).isprintable():
        return []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for number, clip in zip(numbers, ids, strict=False):
        if not clip.strip():
            if not made:
                problems.append((number, "clip_id is empty; give every clip its own name"))
        elif not clip.isprintable():
            problems.append((number, f"clip_id {clip!r} holds a control character; remove it"))
        elif (seen := first.setdefault(clip, number)) != number and made:
            problems.append(
                (number, f"would be clip {clip!r} as {word} {seen}; add a column clip_id with a name for each clip")
            )
        elif seen != number:
            problems.append((number, f"clip_id {clip!r} is already on {word} {seen}; make it unique"))
    return problems


def _check_sources(sources: Sequence[str], numbers: Sequence[int], roots: Roots) -> list[Problem]:
    """Each distinct path is judged once."""
    wrong = wrong_paths(sources, roots)
    return [(n, wrong[s]) for n, s in zip(numbers, sources, strict=False) if s in wrong] if wrong else []


def frame_rate(text: str | None) -> float | None:
    """Frames a second in a cell of the column ``fps``, ``None`` in an empty one; ``ClipError`` where it is no rate."""
    if text is None or text in NO_RATE:
        return None
    try:
        return rate(text)
    except ValueError as error:
        raise ClipError(f"fps {text!r} {error}.") from error


def _check_text(column: str, texts: Sequence[str], numbers: Sequence[int]) -> list[Problem]:
    """Text that cannot be written as UTF-8 (file names of another encoding), or that is too long for what it is."""
    most = LONGEST.get(column, LONGEST_CELL)
    if max(map(len, texts), default=0) <= most and "".join(texts).isascii():
        return []
    long = [
        (n, f"{column} {t[:40]!r}… has {len(t):,} characters, more than {most:,}; shorten it")
        for n, t in zip(numbers, texts, strict=False)
        if len(t) > most
    ]
    if long:
        return long
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        bad = [
            (n, t)
            for n, t in zip(numbers, texts, strict=False)
            if t.encode(errors="ignore") != t.encode(errors="replace")
        ]
        return [(n, f"{column} {t!r} is not valid Unicode; rename the file") for n, t in bad]
    return []


def _texts(series: pd.Series[Any], column: str) -> list[str]:
    """A column as it stands in the file: empty for missing values, floats so short that they still read back equal."""
    whole = column in INTEGERS
    if isinstance(series.dtype, pd.StringDtype):
        return [str(text) for text in series.fillna("").tolist()]

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        if value is None or value is pd.NA or value != value:
            return ""
        if isinstance(value, float):
            return str(int(value)) if whole and value.is_integer() else repr(value)
        return str(value)

    return [text(v) for v in series.tolist()]
