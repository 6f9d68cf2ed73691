"""RULSTM's lists of EPIC-KITCHENS-55, -100 and EGTEA Gaze+: anticipation pairs with RULSTM's splits and action numbers.

Their frame columns count 30 frames a second whatever the video's own rate is; they are divided by 30 here. Times are
thus rounded to a thirtieth of a second: for the EPIC sets the official annotations are the finer truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.epic import (
    Kind,
    Layout,
    Target,
    clips,
    durations,
    find_annotations,
    find_videos,
    kind_of,
    refuse_other,
)
from kdcache.datasets.listing import DatasetReport, locate
from kdcache.datasets.pairs import SETTINGS, WINDOW_S, Early, action_pairs
from kdcache.errors import ManifestError

LAYOUT = """
rulstm/training.csv, rulstm/validation.csv   ek55 or ek100 as RULSTM distributes them; also annotations/ or the root
rulstm/training{1,2,3}.csv, …                EGTEA Gaze+, three splits
videos/…                                     EPIC: as for epic55 and epic100; EGTEA: videos/<session>.mp4
"""

__all__ = ["LAYOUT", "SETTINGS", "manifest"]

COLUMNS = ("id", "video", "start", "stop", "verb", "noun", "action")
FPS = 30.0  # of the frame columns
EGTEA_VIDEOS = {"videos": ["videos/{v}.mp4", "{v}.mp4", "videos/{v}.avi", "{v}.avi"]}


def manifest(
    root: Path,
    *,
    tau: float = 1.0,
    window: float = WINDOW_S,
    split: Literal[1, 2, 3] = 1,
    target: Target = "action",
    early: Early = "clamp",
    layout: Layout = "auto",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``<ek55|ek100|egtea>-<id>@<tau>-observed`` / ``-action``.

    Args:
        root: the data root; see ``LAYOUT``.
        tau: anticipation time in seconds.
        window: length of each clip in seconds; extract at ``32 / window`` frames a second.
        split: which of EGTEA's three splits; the EPIC lists have one.
        target: what ``label`` is; ``verb`` and ``noun`` have their own columns in any case.
        early: what becomes of actions that start before ``tau``.
        layout: where EPIC frames are taken from; ``auto`` takes what is there.
        annotations: folder of the lists.
    """
    folder = find_annotations(root, annotations, ["training.csv", f"training{split}.csv"], "rulstm")
    suffix = "" if (folder / "training.csv").exists() else str(split)
    files = {"train": folder / f"training{suffix}.csv", "val": folder / f"validation{suffix}.csv"}
    kind = kind_of(files["train"])
    if not kind.startswith("rulstm"):
        refuse_other(files["train"], "rulstm-ek55")
    table = pd.concat([read_list(path, kind).assign(split=s) for s, path in files.items()], ignore_index=True)
    length = durations(folder / "EPIC_video_info.csv") | durations(folder / "EPIC_100_video_info.csv")
    videos = table["video"].unique()
    if kind == "rulstm-egtea":
        located = locate(root, EGTEA_VIDEOS, {v: {"v": v} for v in videos}, layout)
    else:
        located = find_videos(root, videos, layout, length)
    table = table.assign(
        uid=table["id"],
        video_id=table["video"],
        participant_id=table["video"].str.extract(r"^([^_-]+)", expand=False),
        start_s=table["start"] / FPS,
        label=table[target],
    )
    actions = clips(table, located, length, kind.removeprefix("rulstm-"))
    rows, dropped = action_pairs(actions, tau, window, early)
    return rows, located.report.dropping(dropped)


def read_list(path: Path, kind: Kind) -> pd.DataFrame:
    """One list: ``id``, ``video`` (text); ``start``, ``stop`` (frames at 30 a second), ``verb``, ``noun``, ``action``.

    Raises:
        ManifestError: the file is missing or of another kind.
    """
    if not path.exists():
        raise ManifestError(str(path), ["no such file; RULSTM's lists come in pairs, training and validation"])
    refuse_other(path, kind)
    table = pd.read_csv(path, header=None, names=list(COLUMNS), dtype=str, skipinitialspace=True)
    return table.astype({**dict.fromkeys(COLUMNS[2:4], "int64"), **dict.fromkeys(COLUMNS[4:], "Int64")})
