"""Class folders: any set laid out as <class>/<video> or <split>/<class>/<video>.

Classes are numbered in the sorted order of their folders' names, which the ``class`` column keeps. Options cut the set
by subject or group, and turn whole clips into anticipation pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from kdcache.datasets.listing import PICTURE_SUFFIXES, VIDEO_SUFFIXES, DatasetReport, Folders
from kdcache.datasets.lists import read_frame
from kdcache.datasets.pairs import ONE_FRAME, observed_until, part_pairs
from kdcache.errors import ManifestError, OptionError, unknown
from kdcache.log import logger

LAYOUT = """
walk/anna_walk.avi           <class>/<video>
run/anna_run.avi
train/walk/0001.mp4          or <split>/<class>/<video>, where all folders are named train, val, test, …
train/walk/0001/000001.jpg   or folders of pictures (and .tar files of them), with fps=25
"""

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def manifest(
    root: Path,
    *,
    subject: str | None = None,
    groups: Path | None = None,
    held_out: tuple[str, ...] = (),
    held_out_share: float = 0.0,
    seed: int = 0,
    observe: float = 0.0,
    fps: float | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row a clip, or two with ``observe``; clip ids are the paths without suffix.

    Args:
        root: the folder of class folders; see ``LAYOUT``.
        subject: regular expression with a group named ``subject``, searched in each file name without suffix, such as
            ``(?P<subject>[a-z]+)_`` for ``daria_bend.avi``.
        groups: CSV (below the root or not) with columns ``source`` and ``group``: clips that must stay together.
        held_out: subjects (or groups, where a CSV is given) whose clips test; all others train.
        held_out_share: draw groups (or subjects) at random until this share of the clips tests; where neither is known,
            this share of each class, at least a clip and never all.
        seed: of that draw.
        observe: e.g. 0.4: the first 40 % of each clip's frames are ``observed``, the rest is the ``action``.
        fps: frame rate of folders of pictures, which count as clips only when it is given.
    """
    if not 0 <= observe < 1:
        raise OptionError(f"observe is {observe}: give the observed share of each clip, between 0 and 1.")
    if held_out and held_out_share:
        raise OptionError("held_out names the clips that test and held_out_share draws them; give one of the two.")
    clips, report = _clips(root, fps)
    if subject is not None:
        clips["subject"] = _subjects(clips["name"], subject)
    if groups is not None:
        clips["group"] = _groups(clips["source"], groups if groups.exists() else root / groups)
    key = "group" if groups is not None else "subject"
    if held_out or held_out_share:
        if key not in clips and held_out:
            raise OptionError(
                "held_out names subjects or groups: say who is in a clip with subject='(?P<subject>[a-z]+)_' (a "
                "pattern for the file's name), or which clips belong together with groups=CSV."
            )
        if key not in clips:
            key = "source"
            logger.warning("clips are held out one by one: those of one person or scene may lie on both sides")
            chosen = _draw_of_classes(clips, held_out_share, seed)
        else:
            chosen = set(held_out) or _draw(clips, key, held_out_share, seed)
        unlisted = sorted(chosen - set(clips[key]))
        if unlisted:
            raise unknown(key, unlisted[0], sorted(set(clips[key])))
        clips["split"] = clips[key].isin(chosen).map({True: "test", False: "train"})
    if fps is not None:
        clips["fps"] = np.where(clips.pop("pictures"), f"{fps:.12g}", "")
    else:
        del clips["pictures"]
    if not observe:
        rows = clips.rename(columns={"name": "clip_id"}).assign(start_s=np.nan, stop_s=np.nan)
        return rows, report
    cuts = {n: observed_until(root / s, observe, fps) for n, s in zip(clips["name"], clips["source"], strict=True)}
    whole = clips["name"].map(cuts).notna()
    report = report.dropping({ONE_FRAME: clips.loc[~whole, "name"]})
    return part_pairs(clips[whole], cuts, "rest"), report


def _clips(root: Path, fps: float | None) -> tuple[pd.DataFrame, DatasetReport]:
    """All clips: name, source, split (where the layout has it), class, label."""
    folders = Folders(root)
    top = [name for name, kind in folders.entries("").values() if kind == "/"]
    by_split = bool(top) and all(name.lower() in SPLITS for name in top)
    classes = [(name, "", name) for name in top]
    if by_split:
        classes = [
            (f"{split}/{name}", SPLITS[split.lower()], name)
            for split in top
            for name, kind in folders.entries(split).values()
            if kind == "/"
        ]
    rows: list[dict[str, object]] = []
    extra = [name for name, kind in folders.entries("").values() if kind != "/"]
    for folder, split, label in classes:
        for name, kind in folders.entries(folder).values():
            source = f"{folder}/{name}"
            pictures = fps is not None and (kind == ".tar" or (kind == "/" and _has_pictures(folders, source)))
            if kind in VIDEO_SUFFIXES or pictures:
                stem = source if kind == "/" else source[: -len(kind)]
                rows.append({"name": stem, "source": source, "split": split, "class": label, "pictures": pictures})
            else:
                extra.append(source)
    if not rows:
        raise ManifestError(str(root), [f"holds no videos in class folders; expected:\n{LAYOUT}"])
    frame = pd.DataFrame(rows)
    twice = frame["name"].duplicated(keep=False)  # a.avi beside a.mp4
    frame.loc[twice, "name"] = frame.loc[twice, "source"]
    number = {name: i for i, name in enumerate(sorted(set(frame["class"])))}
    frame["label"] = frame["class"].map(number).astype("Int64")
    return frame if by_split else frame.drop(columns="split"), DatasetReport(found=len(frame), extra=tuple(extra))


def _has_pictures(folders: Folders, folder: str) -> bool:
    return any(kind in PICTURE_SUFFIXES for _, kind in folders.entries(folder).values())


def _subjects(names: Iterable[str], pattern: str) -> list[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"subject is {pattern!r}: not a regular expression ({error}).") from error
    if "subject" not in regex.groupindex:
        raise OptionError(f"subject is {pattern!r}: it needs a group (?P<subject>…).")
    found = {name: regex.search(name.rpartition("/")[2]) for name in names}
    lost = [name for name, match in found.items() if not match]
    if lost:
        raise OptionError(f"subject {pattern!r} matches {len(lost)} files not at all, such as {lost[0]!r}.")
    return [match.group("subject") for match in found.values() if match]


def _groups(sources: pd.Series[str], path: Path) -> pd.Series[str]:
    if not path.exists():
        raise OptionError(f"groups is {path}: no such file.")
    table = read_frame(path)
    if not {"source", "group"} <= set(table.columns):
        raise ManifestError(str(path), ["needs the columns source and group"])
    group_of = dict(zip(table["source"], table["group"], strict=True))
    lost = sources[~sources.isin(list(group_of))]
    if len(lost):
        raise ManifestError(str(path), [f"{source} has no group" for source in lost])
    return sources.map(group_of)


def _draw_of_classes(clips: pd.DataFrame, share: float, seed: int) -> set[str]:
    """Sources of a share of each class's clips, at least one and never all."""
    if not 0 < share < 1:
        raise OptionError(f"held_out_share is {share}: give the share of clips that test, between 0 and 1.")
    rng, chosen = np.random.default_rng(seed), set[str]()
    for _, sources in clips.groupby("class", sort=True)["source"]:
        count = min(max(1, round(share * len(sources))), len(sources) - 1)
        chosen.update(rng.permutation(sorted(sources))[:count].tolist())
    return chosen


def _draw(clips: pd.DataFrame, key: str, share: float, seed: int) -> set[str]:
    """Groups in random order until they hold ``share`` of the clips."""
    if not 0 < share < 1:
        raise OptionError(f"held_out_share is {share}: give the share of clips that test, between 0 and 1.")
    sizes = clips.groupby(key, sort=True).size()
    names = [str(n) for n in sizes.index]
    if len(names) < 2:
        raise OptionError(f"held_out_share needs at least two different values of {key}; there is {len(names)}.")
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.concatenate([[0], np.cumsum(sizes.to_numpy()[order])])[:-1]
    chosen = {names[i] for i, held in zip(order, before, strict=True) if held < share * len(clips)}
    if chosen == set(names) or set(clips.loc[~clips[key].isin(chosen), "class"]) != set(clips["class"]):
        raise OptionError(f"seed {seed} leaves a class without training clips; try another seed or a smaller share.")
    return chosen
