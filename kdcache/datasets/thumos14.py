"""THUMOS14: anticipation pairs for the temporally annotated actions of 20 classes; validation videos train.

Ambiguous instances are not used. Every CliffDiving instance is listed as Diving too; the latter is left out. The labels
of video_test_0000270 are wrong; it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kdcache.datasets.listing import DatasetReport, annotation_folder, locate
from kdcache.datasets.lists import decimals, read_frame, read_lines
from kdcache.datasets.pairs import Early, action_pairs
from kdcache.errors import ManifestError

LAYOUT = """
TH14_Temporal_annotations_validation/annotation/BaseballPitch_val.txt, …    also below annotations/
TH14_Temporal_annotations_test/annotation/BaseballPitch_test.txt, …
video_durations.csv                             optional: video,duration_s; shows which actions lie beyond the end
validation/video_validation_0000051.mp4         or below videos/, or directly below the root
test/video_test_0000004.mp4
"""

LAYOUTS = {
    "videos": [base + "{v}.mp4" for base in ("{s}/", "videos/{s}/", "videos/", "", "TH14_{s}_set_mp4/", "{s}_set_mp4/")]
}
PARTS = {"validation": "val", "test": "test"}
WRONG = ("video_test_0000270",)
_LINE = re.compile(r"\s*(video_[a-z]+_[0-9]+)\s+([0-9]{1,9}(?:\.[0-9]*)?)\s+([0-9]{1,9}(?:\.[0-9]*)?)\s*")


def manifest(
    root: Path,
    *,
    tau: float = 1.0,
    window: float = 1.0,
    early: Early = "whole",
    overlap: Literal["drop", "keep"] = "drop",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``<video>-<n>@<tau>-observed`` / ``-action``.

    Args:
        root: the data root; see ``LAYOUT``.
        tau: anticipation time in seconds.
        window: length of each clip in seconds (the paper observes one second).
        early: what becomes of actions that start before ``tau + window``; the paper's clips are whole.
        overlap: leave out actions whose observed clip shows an earlier instance of the same class [reconstructed].
        annotations: folder of the two annotation folders.
    """
    names = [f"TH14_Temporal_annotations_{part}" for part in PARTS]
    folder = annotation_folder(root, annotations, names, ("", "annotations", "annotations/thumos14"), "thumos14")
    table = read_instances(folder)
    cliff = set(map(tuple, table.loc[table["class"] == "CliffDiving", ["video", "start_s", "stop_s"]].to_numpy()))
    spans = pd.Series(list(map(tuple, table[["video", "start_s", "stop_s"]].to_numpy())), index=table.index)
    reasons: dict[str, pd.Series[bool]] = {
        "the labels of their video are wrong": table["video"].isin(WRONG),
        "they are listed as CliffDiving too": (table["class"] == "Diving") & spans.isin(cliff),
    }
    if overlap == "drop":
        reasons["the observed clip shows the same class"] = _shows_same(table, tau, window)
    gone = pd.Series(False, index=table.index)
    left_out: dict[str, Sequence[str]] = {}
    for reason, which in reasons.items():
        left_out[reason] = table.loc[which & ~gone, "name"].tolist()
        gone |= which
    table = table[~gone]
    fields = {v: {"v": v, "s": v.split("_")[1]} for v in table["video"].unique()}
    located = locate(root, LAYOUTS, fields)
    clips = table.assign(source=table["video"].map(located.paths), group=table["video"]).drop(columns=["video"])
    clips["duration_s"] = table["video"].map(_durations(folder / "video_durations.csv")).astype(float)
    rows, dropped = action_pairs(clips, tau, window, early)
    return rows, located.report.dropping({**left_out, **dropped})


def read_instances(folder: Path) -> pd.DataFrame:
    """All instances as listed: ``name``, ``video``, ``start_s``, ``stop_s``, ``class``, ``label``, ``split``."""
    rows: list[tuple[str, float, float, str, str]] = []
    for part, suffix in PARTS.items():
        files = sorted((folder / f"TH14_Temporal_annotations_{part}" / "annotation").glob(f"*_{suffix}.txt"))
        split = "train" if part == "validation" else "test"
        for file in (f for f in files if not f.name.startswith("Ambiguous")):
            for i, line in enumerate(read_lines(file), 1):
                match = _LINE.fullmatch(line)
                if match:
                    rows.append((match[1], float(match[2]), float(match[3]), file.stem.rpartition("_")[0], split))
                elif line.strip():
                    raise ManifestError(str(file), [f"line {i}: {line!r} is not '<video> <start> <stop>'"])
    table = pd.DataFrame(rows, columns=["video", "start_s", "stop_s", "class", "split"])
    table = table.sort_values(["video", "start_s", "class"], kind="stable", ignore_index=True)
    number = {name: i for i, name in enumerate(sorted(set(table["class"])))}
    table["label"] = table["class"].map(number).astype("Int64")
    table.insert(0, "name", table["video"] + "-" + table.groupby("video").cumcount().astype(str))
    return table


def _shows_same(table: pd.DataFrame, tau: float, window: float) -> pd.Series[bool]:
    """Whether another instance of the class lies in [start − tau − window, start − tau)."""
    shows = np.zeros(len(table), dtype=bool)
    for _, part in table.reset_index(drop=True).groupby(["video", "class"]):
        start, stop = part["start_s"].to_numpy(), part["stop_s"].to_numpy()
        end = start - tau
        meets = (start[None, :] < end[:, None]) & (stop[None, :] > end[:, None] - window)
        np.fill_diagonal(meets, False)
        shows[part.index.to_numpy()] = meets.any(axis=1)
    return pd.Series(shows, index=table.index, dtype=bool)


def _durations(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    table = read_frame(path, ["video", "duration_s"])
    return dict(zip(table["video"], decimals(path, table, "duration_s"), strict=True))
