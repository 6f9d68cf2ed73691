"""What the EPIC-KITCHENS adapters share: telling their CSV files apart, times, class numbers, where the videos lie."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from kdcache.datasets.listing import Located, annotation_folder, locate
from kdcache.datasets.lists import decimals, demand, read_frame
from kdcache.errors import ManifestError, OptionError

Kind = Literal["epic55", "epic100", "rulstm-ek55", "rulstm-ek100", "rulstm-egtea", "other"]
Target = Literal["verb", "noun", "action"]
Layout = Literal["auto", "videos", "tars", "frames"]

# Below these, the official downloader puts "Pxx/videos"; the 2018 release and its torrent have "videos/train/Pxx".
_BASES = ("", "EPIC-KITCHENS/", "EPIC_KITCHENS_2018/", "EPIC-KITCHENS-100/")
_VIDEOS = ("{p}/videos/{v}.MP4", "videos/train/{p}/{v}.MP4", "videos/test/{p}/{v}.MP4", "videos/{v}.MP4", "{v}.MP4")
_FRAMES = (
    "{p}/rgb_frames/{v}",
    "frames_rgb_flow/rgb/train/{p}/{v}",
    "frames_rgb_flow/rgb/test/{p}/{v}",
    "rgb_frames/{v}",
)
LAYOUTS = {
    "videos": [base + path for base in _BASES for path in _VIDEOS],
    "tars": [base + path + ".tar" for base in _BASES for path in _FRAMES],
    "frames": [base + path for base in _BASES for path in _FRAMES],
}

_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
_FORMS = {
    "participant_id": (r"\S{1,99}", "a participant like P01"),
    "video_id": (r"\S{1,99}", "a video like P01_01"),
    "start_timestamp": (_TIME, "HH:MM:SS.ss"),
    "stop_timestamp": (_TIME, "HH:MM:SS.ss"),
}
"""Column that every official file has → the form of its cells, as a pattern and in words."""
_IDS = {"epic55": {"uid": ("[0-9]{1,9}", "a number")}, "epic100": {"narration_id": (r"\S{1,99}", "an id")}}

_ADVICE: dict[Kind, str] = {
    "epic55": "official EPIC-KITCHENS-55 annotations; use the dataset epic55",
    "epic100": "official EPIC-KITCHENS-100 annotations, whose class numbers differ from 55's; use the dataset epic100",
    "rulstm-ek55": "a RULSTM list of EPIC-KITCHENS-55, counted in frames at 30 a second; use the dataset rulstm",
    "rulstm-ek100": "a RULSTM list of EPIC-KITCHENS-100, counted in frames at 30 a second; use the dataset rulstm",
    "rulstm-egtea": "a RULSTM list of EGTEA Gaze+, counted in frames at 30 a second; use the dataset rulstm",
    "other": "no file of EPIC-KITCHENS or RULSTM that kdcache knows; check its name",
}


def kind_of(path: Path) -> Kind:
    """Which annotations a CSV file holds, judged by its header, or by its first row where it has none."""
    if not path.is_file():
        return "other"
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            first = [cell.strip() for cell in next(csv.reader(file), [])]
    except csv.Error:
        return "other"
    if "narration_id" in first:
        return "epic100"
    if "uid" in first:
        return "epic55"
    if len(first) in (4, 7) and all(re.fullmatch("[0-9]+", cell) for cell in first[2:]):
        if re.fullmatch(r"P\d+_\d+_\d+", first[0]):
            return "rulstm-ek100"
        return "rulstm-ek55" if re.fullmatch(r"P\d+_\d+", first[1]) else "rulstm-egtea"
    return "other"


def find_annotations(root: Path, given: Path | None, wanted: Sequence[str], dataset: str) -> Path:
    """The folder that holds one of the ``wanted`` files, below the root unless ``given``.

    Raises:
        ManifestError: it holds the annotations of another set instead; says which dataset takes them.
        OptionError: it holds none.
    """
    places = ("", "rulstm", "annotations", "annotations/rulstm", "EPIC-KITCHENS", "EPIC-KITCHENS/annotations")
    try:
        return annotation_folder(root, given, wanted, places, dataset)
    except OptionError:
        for place in [given, root / given] if given is not None else [root / p for p in places]:
            for path in sorted(place.glob("*.csv")):
                if kind_of(path) != "other":
                    raise ManifestError(str(path), [f"is {_ADVICE[kind_of(path)]}"]) from None
        raise


def refuse_other(path: Path, wanted: Kind) -> None:
    """Stop where a file is of another kind than its place says.

    Raises:
        ManifestError: says what the file is and which dataset takes it.
    """
    if (kind := kind_of(path)) != wanted:
        raise ManifestError(str(path), [f"is {_ADVICE[kind]}"])


def read_official(path: Path, kind: Literal["epic55", "epic100"], labelled: bool = True) -> pd.DataFrame:
    """One official CSV: its columns as text, and ``start_s``, ``stop_s`` from the timestamps.

    ``start_frame`` is ignored: it counts frames of the 60 (50) fps pictures, not of the video.

    Args:
        path: the file.
        kind: what it must be.
        labelled: it must have classes of verbs and nouns, which may be empty.

    Raises:
        ManifestError: a file of another kind, or cells of another form, with their rows.
    """
    refuse_other(path, kind)
    classes = ("verb_class", "noun_class") if labelled else ()
    forms = _IDS[kind] | _FORMS
    table = read_frame(path, (*forms, *classes))
    for column, (pattern, words) in forms.items():
        demand(path, table, column, pattern, words)
    for column in classes:
        demand(path, table, column, "([0-9]{1,9})?", "a number of a class")
    for column, time in (("start_s", "start_timestamp"), ("stop_s", "stop_timestamp")):
        table[column] = pd.to_timedelta(table[time]).dt.total_seconds()
    return table


def action_list(tables: Sequence[pd.DataFrame]) -> list[tuple[int, int]]:
    """The (verb, noun) pairs of all tables in the order that numbers actions: sorted as the text ``verb_noun``.

    This is RULSTM's numbering of both sets, so action labels agree whichever files they come from.
    """
    every = (pair for table in tables for pair in _verbs_nouns(table))
    pairs = {(verb, noun) for verb, noun in every if verb is not None and noun is not None}
    return sorted(pairs, key=lambda pair: f"{pair[0]}_{pair[1]}")


def with_classes(table: pd.DataFrame, target: Target, actions: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The table with ``label`` (what ``target`` names), ``verb`` and ``noun`` as Int64; unlabelled where empty."""
    pairs = _verbs_nouns(table)
    number: dict[Any, int] = {pair: i for i, pair in enumerate(actions)}
    columns = {
        "verb": [verb for verb, _ in pairs],
        "noun": [noun for _, noun in pairs],
        "action": [number.get(pair) for pair in pairs],
    }
    typed = {name: pd.array(values, dtype="Int64") for name, values in columns.items()}
    return table.assign(label=typed[target], verb=typed["verb"], noun=typed["noun"])


def _verbs_nouns(table: pd.DataFrame) -> list[tuple[int | None, int | None]]:
    parts = ([int(c) if c else None for c in table[f"{part}_class"]] for part in ("verb", "noun"))
    return list(zip(*parts, strict=True))


def clips(table: pd.DataFrame, located: Located, length: Mapping[str, float], prefix: str) -> pd.DataFrame:
    """Actions as ``action_clips`` takes them, named ``<prefix>-<uid>``; ``fps`` where the sources are pictures."""
    columns = {
        "name": prefix + "-" + table["uid"],
        "source": table["video_id"].map(located.paths),
        "start_s": table["start_s"],
        "duration_s": table["video_id"].map(length).astype(float),
        "split": table["split"],
        "label": table["label"],
        "verb": table["verb"],
        "noun": table["noun"],
        "subject": table["participant_id"],
        "group": table["video_id"],
        "uid": table["uid"],
    }
    frame = pd.DataFrame(columns)
    return frame if located.layout == "videos" else frame.assign(fps=table["video_id"].map(frame_rate))


def durations(path: Path) -> dict[str, float]:
    """Video → seconds, from a ``…_video_info.csv``; empty if there is none."""
    if not path.exists():
        return {}
    table = read_frame(path, ["duration"])
    return dict(zip(table.iloc[:, 0], decimals(path, table, "duration"), strict=True))


def find_videos(root: Path, videos: Iterable[str], layout: Layout, others: Collection[str]) -> Located:
    """Locate videos (or tars or folders of their RGB frames) in any of the official layouts.

    ``others`` are further videos of the set, which may lie beside them.
    """
    return locate(root, LAYOUTS, {v: {"v": v, "p": v.split("_")[0]} for v in videos}, layout, others)


def frame_rate(video: str) -> str:
    """Frames a second of the distributed RGB pictures: 50 for the extension's videos (three-digit numbers), else 60."""
    return "50" if len(video.partition("_")[2]) == 3 else "60"
