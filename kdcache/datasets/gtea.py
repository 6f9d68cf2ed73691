"""GTEA: 28 videos of 7 activities by 4 subjects, with 61 or 71 action classes, one subject held out.

Clips are cut from the videos by the label files, or taken from a tree of pictures, one folder an action instance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pandas as pd

from kdcache.datasets.listing import PICTURE_SUFFIXES, DatasetReport, Folders, annotation_folder, locate
from kdcache.datasets.lists import read_lines
from kdcache.datasets.splits import leave_one_out, split_without
from kdcache.errors import ManifestError

LAYOUT = """
labels/S1_Cheese_C1.txt                    one action a line: <take><bread> (90-134) [1]
videos/S1_Cheese_C1.mp4                    15 frames a second; or directly below the root
frames/S1/take_bread/1/image_00001.jpg     or pictures: <subject>/<class>/<instance>/, instead of labels and videos
"""

LAYOUTS = {"videos": [f"{base}{{v}}{suffix}" for suffix in (".mp4", ".avi") for base in ("videos/", "", "Videos/")]}
FPS = 15.0
FIXED = "S2"  # the subject whose split papers take that have one split (motion imprinting)
SUBJECTS = ("S1", "S2", "S3", "S4")
SHORTEST = 5  # frames; folders with fewer are left out, as by Ego-RNN
_LINE = re.compile(
    r"\s*<(?P<verb>[^<>]+)><(?P<objects>[^<>]*)>\s*\((?P<first>[0-9]{1,9})\s*-\s*(?P<last>[0-9]{1,9})\).*"
)


def manifest(
    root: Path,
    *,
    classes: Literal[61, 71] = 61,
    held_out: Literal["S1", "S2", "S3", "S4", "all"] = "S2",
    layout: Literal["auto", "frames", "videos"] = "auto",
    fps: float = FPS,
    annotations: Path | None = None,
) -> tuple[pd.DataFrame, DatasetReport]:
    """One row an action: ``<video>-<n>``, or ``<subject>/<class>/<instance>`` from pictures.

    Args:
        root: the data root; see ``LAYOUT``.
        classes: the 61-class set (``stir_cup`` counts as ``stir_spoon,cup``; ``put_tea`` of S1 and S2 is left out) or
            the 71-class set (without ``stir_cup`` and ``put_tea``). Pictures have the classes of their folders.
        held_out: the subject that tests; the others train. ``all`` has a column for each subject that there is,
            ``split_S1`` …, beside ``split``, which is that of S2.
        layout: pictures where there are any, or videos with label files.
        fps: frame rate of pictures, and of the frame numbers in label files.
        annotations: folder of the label files.
    """
    pictures = layout == "frames" or (layout == "auto" and (root / "frames").is_dir())
    if pictures:
        rows, names, report = _from_pictures(root, fps)
    else:
        rows, names, report = _from_labels(root, annotations, classes, fps)
    number = {name: i for i, name in enumerate(sorted(names))}
    rows["label"] = rows["class"].map(number).astype("Int64")
    rows["split"] = split_without(rows["subject"], FIXED if held_out == "all" else held_out)
    if held_out == "all":
        rows = rows.assign(**leave_one_out(rows["subject"]))
    if len(number) != classes:
        report = report.noting(f"{len(number)} classes were found, not {classes}: some videos or subjects are missing")
    return rows, report


def _from_labels(
    root: Path, annotations: Path | None, classes: int, fps: float
) -> tuple[pd.DataFrame, set[str], DatasetReport]:
    usual = ("labels", "annotations", "")
    folder = annotation_folder(root, annotations, ["S1_Cheese_C1.txt", "S2_Cheese_C1.txt"], usual, "gtea")
    rows: list[dict[str, object]] = []
    left_out: dict[str, list[str]] = {}
    for file in sorted(folder.glob("S[1-4]_*.txt")):
        subject = file.stem.partition("_")[0]
        for i, line in enumerate(read_lines(file), 1):
            match = _LINE.fullmatch(line)
            if not match:  # an action without an object, or an empty line
                if line.strip():
                    left_out.setdefault("they name no object", []).append(f"{file.name}:{i}")
                continue
            first, last = int(match["first"]), int(match["last"])
            if last < first:
                raise ManifestError(str(file), [f"line {i}: frames {first}-{last} run backwards"])
            name = class_name(match["verb"], match["objects"], subject, classes)
            if name is None:
                left_out.setdefault(f"they are not among the {classes} classes", []).append(f"{file.name}:{i}")
                continue
            # Frame numbers are inclusive and count from 1 [reconstructed].
            span = {"start_s": max(0, first - 1) / fps, "stop_s": last / fps}
            clip = {"clip_id": f"{file.stem}-{i}", "video": file.stem, **span, "class": name, "subject": subject}
            rows.append(clip)
    if not rows:
        raise ManifestError(str(folder), ["no label file holds an action like <take><bread> (90-134) [1]"])
    table = pd.DataFrame(rows)
    located = locate(root, LAYOUTS, {str(v): {"v": str(v)} for v in table["video"].unique()})
    table.insert(1, "source", table["video"].map(located.paths))
    return table.rename(columns={"video": "group"}), set(table["class"]), located.report.dropping(left_out)


def class_name(verb: str, objects: str, subject: str, classes: int) -> str | None:
    """``verb_object1,object2`` as the 61- or 71-class set spells it; ``None`` for actions outside it."""
    name = f"{verb.strip()}_{','.join(part.strip() for part in objects.split(','))}"
    if classes == 71:
        return None if name in ("stir_cup", "put_tea") else name
    if name == "stir_cup":
        return "stir_spoon,cup"
    return None if name == "put_tea" and subject in ("S1", "S2") else name


def _from_pictures(root: Path, fps: float) -> tuple[pd.DataFrame, set[str], DatasetReport]:
    """All instances, and the classes of all subjects' folders together, also of empty ones."""
    folders = Folders(root)
    rows: list[Mapping[str, object]] = []
    names: set[str] = set()
    short: list[str] = []
    for subject in SUBJECTS:
        for name in _subfolders(folders, f"frames/{subject}"):
            names.add(name)
            for instance in _subfolders(folders, f"frames/{subject}/{name}"):
                clip = f"{subject}/{name}/{instance}"
                kinds = [kind for _, kind in folders.entries(f"frames/{clip}").values()]
                if sum(kind in PICTURE_SUFFIXES for kind in kinds) < SHORTEST:
                    short.append(clip)
                    continue
                times = {"start_s": float("nan"), "stop_s": float("nan"), "fps": f"{fps:.12g}"}
                rows.append({"clip_id": clip, "source": f"frames/{clip}", **times, "class": name, "subject": subject})
    if not rows:
        raise ManifestError(f"{root}/frames", [f"holds no clips; expected:\n{LAYOUT}"])
    report = DatasetReport(found=len(rows)).dropping({f"they have fewer than {SHORTEST} frames": short})
    return pd.DataFrame(rows), names, report


def _subfolders(folders: Folders, path: str) -> list[str]:
    return [name for name, kind in folders.entries(path).values() if kind == "/"]
