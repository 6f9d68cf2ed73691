"""RULSTM's lists of EPIC-KITCHENS-55, -100 and EGTEA Gaze+: anticipation pairs with RULSTM's splits and action numbers.

Their frame columns count 30 frames a second whatever the video's own rate is; they are divided by 30 here. Times are
thus rounded to a thirtieth of a second: for the EPIC sets the official annotations are the finer truth.
"""

from __future__ import annotations

import re
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
from kdcache.datasets.lists import read_cells
from kdcache.datasets.pairs import SETTINGS, TAU_S, WINDOW_S, Early, action_clips
from kdcache.errors import ManifestError, OptionError

LAYOUT = """
rulstm/training.csv, rulstm/validation.csv   ek55 or ek100 as RULSTM distributes them; also annotations/ or the root
rulstm/test_{seen,unseen}.csv                ek55 with test=true; of ek100 test_timestamps.csv
rulstm/training{1,2,3}.csv, …                EGTEA Gaze+, three splits
videos/…                                     EPIC: as for epic55 and epic100; EGTEA: videos/<session>.mp4
"""

__all__ = ["LAYOUT", "SETTINGS", "manifest"]

COLUMNS = ("id", "video", "start", "stop", "verb", "noun", "action")
_ID_AND_VIDEO = {
    "rulstm-ek55": re.compile("[0-9]{1,18},P[0-9]+_[0-9]+"),
    "rulstm-ek100": re.compile("P[0-9]+_[0-9]+_[0-9]+,P[0-9]+_[0-9]+"),
    "rulstm-egtea": re.compile("[^,]+,[^,]+"),
}
_WHOLE = re.compile("[0-9]{1,18}")
FPS = 30.0  # of the frame columns
TESTS: dict[Kind, dict[str, str]] = {
    "rulstm-ek55": {"test_s1": "test_seen.csv", "test_s2": "test_unseen.csv"},
    "rulstm-ek100": {"test": "test_timestamps.csv"},
}
"""Split → list of the test sets; EGTEA Gaze+ has none."""
EGTEA_VIDEOS = {"videos": ["videos/{v}.mp4", "{v}.mp4", "videos/{v}.avi", "{v}.avi"]}


def manifest(
    root: Path,
    *,
    tau: float = TAU_S,
    window: float = WINDOW_S,
    split: Literal[1, 2, 3] = 1,
    target: Target = "action",
    early: Early = "clamp",
    history: float | None = None,
    layout: Layout = "auto",
    annotations: Path | None = None,
    test: bool = False,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``<ek55|ek100|egtea>-<id>@<tau>-observed`` / ``-action``, or clips ``…-<id>@<history>-past``.

    Args:
        root: the data root; see ``LAYOUT``.
        tau: anticipation time in seconds.
        window: length of each clip in seconds; extract at ``32 / window`` frames a second.
        split: which of EGTEA's three splits; the EPIC lists have one.
        target: what ``label`` is; ``verb`` and ``noun`` have their own columns in any case.
        early: what becomes of actions that start before ``tau``.
        history: instead of pairs one clip an action, so many seconds that end where it starts.
        layout: where EPIC frames are taken from; ``auto`` takes what is there.
        annotations: folder of the lists.
        test: add the lists of the challenges' test sets, without labels.
    """
    folder = find_annotations(root, annotations, ["training.csv", f"training{split}.csv"], "rulstm")
    suffix = "" if (folder / "training.csv").exists() else str(split)
    files = {"train": folder / f"training{suffix}.csv", "val": folder / f"validation{suffix}.csv"}
    kind = kind_of(files["train"])
    if not kind.startswith("rulstm"):
        refuse_other(files["train"], "rulstm-ek55")
    tables = [read_list(path, kind).assign(split=s) for s, path in files.items()]
    if test:
        if kind not in TESTS:
            raise OptionError("test=true: EGTEA Gaze+ has no test list; leave it out.")
        tables += [read_list(folder / file, kind, test=True).assign(split=s) for s, file in TESTS[kind].items()]
    table = pd.concat(tables, ignore_index=True)
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
    rows, dropped = action_clips(actions, tau, window, early, history)
    return rows, located.report.dropping(dropped)


def read_list(path: Path, kind: Kind, test: bool = False) -> pd.DataFrame:
    """One list: ``id``, ``video`` (text); ``start``, ``stop`` (frames at 30 a second), ``verb``, ``noun``, ``action``.

    Lists of ``test`` sets lack the last three, which are empty then.

    Raises:
        ManifestError: the file is missing or of another kind.
    """
    if not path.exists():
        raise ManifestError(str(path), ["no such file; RULSTM's lists come in pairs, training and validation"])
    refuse_other(path, kind)
    rows = read_cells(path)
    columns = COLUMNS[:4] if test else COLUMNS
    if len(rows[0]) != len(columns):
        raise ManifestError(str(path), [f"has {len(rows[0])} columns, not {len(columns)}: {', '.join(columns)}"])
    begins = _ID_AND_VIDEO[kind]
    wrong = [
        f"row {i}: {','.join(row)[:80]!r} is not {', '.join(columns)}"
        for i, row in enumerate(rows, 1)
        if not begins.fullmatch(",".join(row[:2])) or not all(map(_WHOLE.fullmatch, row[2:]))
    ]
    if wrong:
        raise ManifestError(str(path), wrong)
    table = pd.DataFrame(rows, columns=list(columns), dtype=str).reindex(columns=list(COLUMNS))
    return table.astype({**dict.fromkeys(COLUMNS[2:4], "int64"), **dict.fromkeys(COLUMNS[4:], "Int64")})
