"""Finding the files of a dataset below its root, and saying which are missing, extra or left out."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import OptionError, unknown

if TYPE_CHECKING:
    import pandas as pd

VIDEO_SUFFIXES = frozenset(
    (".avi", ".mp4", ".m4v", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".ts", ".mts")
)
PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))

_NAMED = 8  # files named in one line of a report; the report itself keeps all


@dataclass(frozen=True)
class DatasetReport:
    """What building a manifest met: nothing is left out of one without being named here."""

    found: int = 0
    """Sources of the manifest that lie on disk."""
    missing: tuple[str, ...] = ()
    """Sources that the annotations name and the disk lacks."""
    extra: tuple[str, ...] = ()
    """Files beside the sources that no annotation names."""
    dropped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason → clips left out of the manifest."""
    notes: tuple[str, ...] = ()

    def dropping(self, clips_for: Mapping[str, Iterable[str]]) -> DatasetReport:
        """This report with more clips left out, by reason."""
        named = {reason: tuple(clips) for reason, clips in clips_for.items()}
        return replace(self, dropped={**self.dropped, **{reason: clips for reason, clips in named.items() if clips}})

    def noting(self, *notes: str) -> DatasetReport:
        """This report with more remarks."""
        return replace(self, notes=(*self.notes, *notes))

    def lines(self) -> list[str]:
        """The report as sentences; empty when all is in order."""
        lines = list(self.notes)
        if self.missing:
            lines.append(
                f"{len(self.missing)} of {len(self.missing) + self.found} sources missing: {_some(self.missing)}"
            )
        if self.extra:
            lines.append(f"{len(self.extra)} files in no list: {_some(self.extra)}")
        return lines + [f"{len(clips)} left out, {reason}: {_some(clips)}" for reason, clips in self.dropped.items()]

    def __deepcopy__(self, memo: dict[int, Any]) -> DatasetReport:
        return self  # never changes; pandas copies ``attrs`` with every frame


class Folders:
    """What lies below a root; each folder is listed once, when first asked for. Hidden entries are not seen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[str, dict[str, tuple[str, str]]] = {}

    def entries(self, folder: str) -> dict[str, tuple[str, str]]:
        """Lower-case name → (name, kind) of a folder's entries; kind is a file's suffix or ``/`` for a folder."""
        if folder not in self._listed:
            listed: dict[str, tuple[str, str]] = {}
            if (self.root / folder).is_dir():
                with os.scandir(self.root / folder) as entries:
                    for entry in sorted(entries, key=lambda e: e.name):
                        if not entry.name.startswith("."):
                            kind = "/" if entry.is_dir() else os.path.splitext(entry.name)[1].lower()
                            listed[entry.name.lower()] = (entry.name, kind)
            self._listed[folder] = listed
        return self._listed[folder]

    def find(self, path: str) -> str | None:
        """The path as spelt on disk, whatever the case of its letters; ``None`` if it is not there."""
        here = ""
        for part in path.split("/"):
            entry = self.entries(here).get(part.lower())
            if entry is None:
                return None
            here = f"{here}/{entry[0]}" if here else entry[0]
        return here

    def beside(self, paths: Iterable[str]) -> list[str]:
        """Files (or folders) of the same kind in the same folders as ``paths`` that are not among them."""
        known = set(paths)
        kinds: dict[str, set[str]] = {}
        for path in known:
            folder, _, name = path.rpartition("/")
            kinds.setdefault(folder, set()).add(self.entries(folder)[name.lower()][1])
        found = (
            f"{folder}/{name}" if folder else name
            for folder in sorted(kinds)
            for name, kind in self.entries(folder).values()
            if kind in kinds[folder]
        )
        return [path for path in found if path not in known]


@dataclass(frozen=True)
class Located:
    """Where the sources of a dataset are: name → path relative to the root (where it should be, if missing)."""

    paths: dict[str, str]
    layout: str
    report: DatasetReport


def locate(
    root: Path,
    layouts: Mapping[str, Sequence[str]],
    clips: Mapping[str, Mapping[str, str]],
    layout: str = "auto",
    others: Collection[str] = (),
) -> Located:
    """Find every source, all in one layout: pixels of a video and of frames made from it differ, so they never mix.

    Args:
        root: the data root.
        layouts: layout → path templates, tried in order for each source; the first is where a missing source belongs.
        clips: source name → the fields of the templates.
        layout: one of ``layouts``; ``auto`` takes the one that has the most sources (the first of equals).
        others: stems of files that may lie beside the sources without being called extra.

    Raises:
        OptionError: unknown layout.
    """
    if layout != "auto" and layout not in layouts:
        raise unknown("layout", layout, ["auto", *layouts])
    folders = Folders(root)
    best: tuple[str, dict[str, str]] | None = None
    for name in layouts if layout == "auto" else [layout]:
        found: dict[str, str] = {}
        for clip, fields in clips.items():
            tried = (folders.find(template.format(**fields)) for template in layouts[name])
            if path := next((p for p in tried if p is not None), None):
                found[clip] = path
        if best is None or len(found) > len(best[1]):
            best = (name, found)
    if best is None:
        raise OptionError("a dataset without layouts")
    chosen, found = best
    paths = {clip: found.get(clip) or layouts[chosen][0].format(**fields) for clip, fields in clips.items()}
    missing = tuple(paths[clip] for clip in clips if clip not in found)
    extra = tuple(p for p in folders.beside(found.values()) if Path(p).stem not in others)
    return Located(paths, chosen, DatasetReport(len(found), missing, extra))


def whole_clips(clips: pd.DataFrame, located: Located) -> pd.DataFrame:
    """One row a clip, from the start of its source to the end.

    Args:
        clips: ``name`` (becomes ``clip_id``) and columns to keep.
        located: where each name lies.
    """
    rows = clips.rename(columns={"name": "clip_id"}).reset_index(drop=True)
    rows.insert(1, "source", [located.paths[name] for name in rows["clip_id"]])
    rows.insert(2, "start_s", math.nan)
    rows.insert(3, "stop_s", math.nan)
    return rows


def annotation_folder(
    root: Path, given: Path | None, wanted: Sequence[str], usual: Sequence[str], dataset: str
) -> Path:
    """The folder that holds the annotation files.

    Args:
        root: the data root.
        given: the option ``annotations``, relative to the working folder or to the root; searched for if ``None``.
        wanted: the folder is the first that has one of these files.
        usual: where to look below the root.
        dataset: its name, for the message.

    Raises:
        OptionError: none has them; names what was looked for and where.
    """
    places = [given, root / given] if given is not None else [root / place for place in usual]
    for place in places:
        if any((place / name).exists() for name in wanted):
            return place
    raise OptionError(
        f"{dataset}: no {' or '.join(wanted)} in {', '.join(str(p) for p in places)}; "
        "put the annotations there or name their folder with the option annotations."
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f", … and {more} more" if more > 0 else "")
