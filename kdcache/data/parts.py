"""The parts of cross-fitting: labelled training clips, cut by whole groups, classes spread over all parts."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from kdcache.data.clips import GROUP_COLUMNS
from kdcache.errors import OptionError
from kdcache.log import logger

_SPANS = ["source", "start_s", "stop_s"]


def draw_parts(rows: pd.DataFrame, classes: pd.Series[int], parts: int) -> dict[str, int]:
    """Cut clips into parts, the same ones whenever it is asked for.

    Clips stay together that have the same ``group``, else ``subject``, else ``source``: the first of these columns
    with enough values decides, and where none has, clips are kept apart unless they are the same span of one source.
    Groups are dealt from the largest to the smallest, each to the part that has the fewest clips of its classes, then
    the fewest clips [reconstructed].

    Args:
        rows: of the manifest, those to be cut.
        classes: clip id → its class.
        parts: their number, 2 or more.

    Returns:
        Clip → part, 0 … ``parts`` − 1; no part is empty.

    Raises:
        OptionError: fewer clips than parts.
    """
    rows = rows.set_index("clip_id", drop=False)
    column, groups = _groups(rows, parts)
    members: dict[str, list[str]] = {}
    for clip, group in zip(rows["clip_id"], groups, strict=True):
        members.setdefault(group, []).append(clip)
    if len(members) < parts:
        raise OptionError(
            f"{len(members)} labelled training clips cannot be cut into {parts} parts: label more, or cut fewer."
        )
    order = sorted(members, key=lambda name: (-len(members[name]), zlib.crc32(name.encode()), name))
    counts: list[Counter[int]] = [Counter() for _ in range(parts)]
    part_of: dict[str, int] = {}
    for group in order:
        its = Counter(int(classes[clip]) for clip in members[group])
        chosen = min(range(parts), key=lambda p: (_overlap(counts[p], its), counts[p].total(), p))
        counts[chosen] += its
        part_of |= dict.fromkeys(members[group], chosen)
    sizes = ", ".join(str(count.total()) for count in counts)
    logger.info("%d labelled training clips in %d parts of %s, whole by %s", len(part_of), parts, sizes, column)
    _warn_of_single_parts(counts)
    return dict(sorted(part_of.items()))


def _overlap(count: Counter[int], its: Counter[int]) -> int:
    return sum(count[c] * n for c, n in its.items())


def _groups(rows: pd.DataFrame, parts: int) -> tuple[str, Sequence[str]]:
    """What keeps clips together, in words, and the group of each row."""
    for column in (c for c in GROUP_COLUMNS if c in rows and c != "clip_id"):
        values = rows[column].astype(str).where(rows[column].notna(), "")
        if not (values == "").any() and values.nunique() >= parts:
            return column, values.tolist()
    return "span", rows[_SPANS].astype(str).agg("|".join, axis=1).tolist()


def _warn_of_single_parts(counts: Sequence[Counter[int]]) -> None:
    """A class of one part is unknown to the network that computes its clips."""
    alone = sorted(c for c in set().union(*counts) if sum(c in count for count in counts) == 1)
    if alone:
        clips = sum(count[c] for count in counts for c in alone)
        shown = ", ".join(map(str, alone[:5])) + ("…" if len(alone) > 5 else "")
        logger.warning(
            "%d of the classes (number %s) have labelled clips in one part alone, so that the network which computes "
            "these %d clips has never seen their class: label at least two groups of each, or cut more parts",
            len(alone),
            shown,
            clips,
        )
