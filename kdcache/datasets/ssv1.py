"""Something-Something v1: folders of frames at 12 a second, 174 classes; the official validation clips are the test.

Papers report on the validation list, as the test list has no labels; so its clips are ``test`` here and choose nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate, whole_clips
from kdcache.datasets.lists import filled_lines
from kdcache.errors import ManifestError

LAYOUT = """
something-something-v1-train.csv                lines <id>;<class>; also in annotations/
something-something-v1-validation.csv
something-something-v1-test.csv                 lines <id>; with test=true
something-something-v1-labels.csv               optional: class names in the order that numbers them
20bn-something-something-v1/100218/00001.jpg    or below rawframes/, or directly below the root
"""

LAYOUTS = {"frames": ["20bn-something-something-v1/{n}", "rawframes/{n}", "{n}"]}
FPS = 12
CLASSES = 174
LABELLED = ("train", "validation")
SPLITS = {
    "reported": {"train": "train", "validation": "test", "test": ""},
    "official": {"train": "train", "validation": "val", "test": ""},
}


def manifest(
    root: Path,
    *,
    protocol: Literal["reported", "official"] = "reported",
    test: bool = False,
    order: Literal["listed", "sorted"] = "listed",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a listed clip, named by its number.

    Args:
        root: the data root; see ``LAYOUT``.
        protocol: the official validation clips test, or, as the lists have it, they validate and so select.
        test: add the official test clips, which have no labels and are of no split.
        order: classes are numbered as the labels file lists them, or by sorted name, as where there is no such file.
        annotations: folder of the lists.
    """
    usual = ("", "annotations", "annotations/ssv1")
    folder = annotation_folder(root, annotations, [_file(part) for part in LABELLED], usual, "ssv1")
    read = {part: _read(folder / _file(part), labelled=True) for part in LABELLED}
    unlabelled = folder / _file("test")
    others: Collection[str] = ()
    if test:
        read["test"] = _read(unlabelled, labelled=False)
    elif unlabelled.exists():
        others = set(_read(unlabelled, labelled=False)["name"])
    clips = pd.concat([table.assign(list=part) for part, table in read.items()], ignore_index=True)
    _refuse(folder, clips[clips["name"].duplicated()], "clip {name} is listed twice")
    names = _classes(folder / _file("labels"), clips)
    plain = clips["class"].map(_plain)
    known = (plain == "") | plain.isin(list(names))
    _refuse(folder, clips[~known], f"class {{label!r}} is not in {_file('labels')}")
    numbered = sorted(names) if order == "sorted" else list(names)
    number = {name: i for i, name in enumerate(numbered)}
    clips["label"] = plain.map(number).astype("Int64")
    clips["class"] = plain.map(names).fillna("")
    clips["split"] = clips["list"].map(SPLITS[protocol])
    clips["fps"] = f"{FPS}"
    located = locate(root, LAYOUTS, {name: {"n": name} for name in clips["name"]}, others=others)
    report = located.report
    if len(names) != CLASSES:
        report = report.noting(f"{len(names)} classes were found, not {CLASSES}")
    return whole_clips(clips.drop(columns=["line", "list"]), located), report


def _file(part: str) -> str:
    return f"something-something-v1-{part}.csv"


def _read(path: Path, *, labelled: bool) -> pd.DataFrame:
    """The clips of one list: ``name``, ``class`` as written there, ``line``."""
    form = "<id>;<class>" if labelled else "<id>"
    wrong = []
    rows = []
    for number, line in filled_lines(path):
        name, label = (_unquoted(part) for part in line.partition(";")[::2])
        if not name.isdecimal() or (label != "") != labelled:
            wrong.append(f"line {number}: {line!r} is not '{form}'")
        rows.append((name, label, number))
    if wrong or not rows:
        raise ManifestError(str(path), wrong or ["is empty"])
    return pd.DataFrame(rows, columns=["name", "class", "line"])


def _refuse(folder: Path, clips: pd.DataFrame, why: str) -> None:
    """Raise a ``ManifestError`` for the first list that has any of these clips, with their lines."""
    for part, rows in clips.groupby("list", sort=False):
        columns = (rows[column] for column in ("line", "name", "class"))
        wrong = [
            f"line {line}: {why.format(name=name, label=label)}" for line, name, label in zip(*columns, strict=True)
        ]
        raise ManifestError(str(folder / _file(str(part))), wrong)


def _classes(path: Path, clips: pd.DataFrame) -> dict[str, str]:
    """Plain name → name of every class, in the order of the labels file, or sorted where there is none."""
    if not path.exists():
        return {_plain(name): name for name in sorted(set(clips["class"]) - {""}, key=_plain)}
    names: dict[str, str] = {}
    for line, text in filled_lines(path):
        name = _unquoted(text)
        if _plain(name) in names:
            raise ManifestError(str(path), [f"line {line}: class {name!r} is listed twice"])
        names[_plain(name)] = name
    return names


def _plain(name: str) -> str:
    """A class name without the brackets around its placeholders, which some copies of the lists have and some lack."""
    return name.replace("[", "").replace("]", "")


def _unquoted(text: str) -> str:
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].replace('""', '"').strip() if quoted else text
