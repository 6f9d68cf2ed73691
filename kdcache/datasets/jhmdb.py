"""JHMDB: three splits of 928 clips in 21 classes, whole or with the first 20 % observed.

The anticipation paper's protocol: the student sees the first ``ceil(0.2 n)`` frames, the teacher the whole clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.hmdb51 import read_lists
from kdcache.datasets.listing import DatasetReport, locate, whole_clips
from kdcache.datasets.pairs import ONE_FRAME, observed_until, part_pairs
from kdcache.datasets.splits import Wanted
from kdcache.errors import OptionError

LAYOUT = """
splits/brush_hair_test_split1.txt, …       also annotations/ or the root
Rename_Images/brush_hair/<clip>/00001.png  the released pictures
ReCompress_Videos/brush_hair/<clip>.avi    or videos
"""

LAYOUTS = {"frames": ["Rename_Images/{c}/{v}"], "videos": ["ReCompress_Videos/{c}/{v}.avi", "{c}/{v}.avi"]}


def manifest(
    root: Path,
    *,
    split: Wanted = 1,
    observe: float = 0.2,
    action: Literal["whole", "rest"] = "whole",
    fps: float = 30.0,
    layout: Literal["auto", "frames", "videos"] = "auto",
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """Pairs ``<class>/<clip>-observed`` / ``-action``; with ``observe=0`` one row a clip.

    Args:
        root: the data root; see ``LAYOUT``.
        split: which official split; ``all`` has a column for each, ``split_1`` ….
        observe: observed share of each clip's frames.
        action: what the recognition network sees.
        fps: frame rate of the pictures; they carry no clock [from memory: 30].
        layout: pictures (exact frame counts; preferred) or videos, some of which have one frame more or less.
        annotations: folder of the split lists.
    """
    if not 0 <= observe < 1:
        raise OptionError(f"observe is {observe}: give the observed share of each clip, between 0 and 1.")
    usual = ("splits", "annotations", "annotations/jhmdb", "")
    clips, _ = read_lists(root, annotations, usual, split, "jhmdb")
    fields = {n: {"c": c, "v": n.partition("/")[2]} for n, c in zip(clips["name"], clips["class"], strict=True)}
    located = locate(root, LAYOUTS, fields, layout)
    pictures = located.layout == "frames"
    if pictures:
        clips["fps"] = f"{fps:.12g}"
    if not observe:
        return whole_clips(clips, located), located.report
    clips.insert(1, "source", [located.paths[name] for name in clips["name"]])
    here = ~clips["source"].isin(located.report.missing)
    rate = fps if pictures else None
    cuts = {
        name: observed_until(root / source, observe, rate)
        for name, source in zip(clips.loc[here, "name"], clips.loc[here, "source"], strict=True)
    }
    usable = clips["name"].map(cuts).notna()
    report = located.report.dropping(
        {
            ONE_FRAME: clips.loc[here & ~usable, "name"],
            "the file is missing, so its length is unknown": clips.loc[~here, "name"],
        }
    )
    return part_pairs(clips[usable], cuts, action), report
