"""Which clips a fit reads, and reading them: each source once, with a list of those that cannot be had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pandas as pd

from kdcache.errors import ClipError, SourceError
from kdcache.manifest import frame_rate
from kdcache.roots import Roots
from kdcache.sources import find
from kdcache.store.failures import Failure

Opened = TypeVar("Opened")
Read = TypeVar("Read")


class Clip(NamedTuple):
    """A manifest row as far as reading it goes."""

    clip_id: str
    source: str
    path: Path
    start_s: float
    stop_s: float
    fps: float | None
    """Of folders and tars of images, which have no clock."""


@dataclass
class Loaded(Generic[Read]):
    """What could be read, by clip id, and why the rest could not."""

    clips: dict[str, Read] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def clips_of(rows: pd.DataFrame, roots: Roots) -> dict[str, Clip]:
    """The clips of a manifest by id.

    Raises:
        SourceError: a source that none of several roots has, or two of them differently; see ``kdcache.sources.find``.
    """
    paths = {source: find(roots, source) for source in rows["source"].unique()}
    rates = rows["fps"] if "fps" in rows else [""] * len(rows)
    columns = zip(rows["clip_id"], rows["source"], rows["start_s"], rows["stop_s"], rates, strict=True)
    return {
        clip_id: Clip(clip_id, source, paths[source], start, stop, frame_rate(fps))
        for clip_id, source, start, stop, fps in columns
    }


def read_each(
    clips: Sequence[Clip], open_one: Callable[[Clip], Opened], read: Callable[[Opened, Clip], Read]
) -> Loaded[Read]:
    """Open each source once and read its clips in order of time; those that fail are listed, with the reason."""
    loaded: Loaded[Read] = Loaded()
    ordered = sorted(clips, key=lambda c: (c.source, c.start_s if c.start_s == c.start_s else -1.0, c.clip_id))
    for source, group in groupby(ordered, key=lambda c: c.source):
        members = list(group)
        try:
            opened = open_one(members[0])
        except SourceError as error:
            loaded.failures += [Failure(c.clip_id, source, "open", str(error)) for c in members]
            continue
        with contextlib.ExitStack() as at_end:
            if hasattr(opened, "close"):
                at_end.callback(opened.close)
            for clip in members:
                try:
                    loaded.clips[clip.clip_id] = read(opened, clip)
                except ClipError as error:
                    loaded.failures.append(Failure(clip.clip_id, source, "sample", str(error)))
                except SourceError as error:
                    loaded.failures.append(Failure(clip.clip_id, source, "decode", str(error)))
    return loaded
