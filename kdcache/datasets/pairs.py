"""Anticipation pairs: what was observed and, ``tau`` seconds after its end, the action; and the guard against leaks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from kdcache.errors import ManifestError, OptionError
from kdcache.sources import open_source

FPS = 30.0  # [reconstructed]: the paper says 32 frames and no rate
WINDOW_S = 32 / FPS
TAU_S = 1.0
# A clip cut short by the start of its video repeats the first frame; at another window take another rate.
SETTINGS = {"fps": FPS, "anchor": "last"}
ONE_FRAME_S = 1 / 120  # a span so short that it holds the frame at its start alone, up to 120 frames a second
BEYOND = "the action starts after the end of its video"  # the same
ONE_FRAME = "a single frame cannot be both observed and anticipated"  # why a report leaves a clip out
_TOLERANCE_S = 1e-6  # of the leak guard: far less than a frame, more than the rounding of decimal times

Early = Literal["clamp", "drop", "whole"]


def check_timing(tau: float, window: float) -> None:
    """Refuse an anticipation time or window that makes no pair.

    Raises:
        OptionError: ``tau`` negative or ``window`` not positive, or either not finite.
    """
    if not (math.isfinite(tau) and tau >= 0):
        raise OptionError(f"tau is {tau}: give the anticipation time in seconds, 0 or more.")
    if not (math.isfinite(window) and window > 0):
        raise OptionError(f"window is {window}: give the length of a clip in seconds, more than 0.")


def action_pairs(
    actions: pd.DataFrame, tau: float, window: float = WINDOW_S, early: Early = "clamp"
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """Two clips an action: ``observed`` [start − tau − window, start − tau) and ``action`` [start, start + window).

    (Anticipation paper §2: student x_{t−τ}, teacher x_t, t = action start; offsets and length [reconstructed].)
    Spans are cut to [0, duration]. Where nothing lies before start − tau the observed clip is the source's first frame
    and ``clamped`` is 1 [reconstructed: the paper's count shows that it left no action out]; ``early="drop"`` leaves
    such actions out, ``"whole"`` also those with less than a window. The action clip's span does not depend on ``tau``,
    so its cached arrays serve every ``tau``.

    Args:
        actions: ``name`` (unique), ``source``, ``start_s``, ``duration_s`` (of the source, NaN = unknown); all other
            columns are carried into both clips.

    Returns:
        The rows, observed before action, with ``pair``, ``role``, ``tau`` and ``clamped``; and reason → names left out.
    """
    check_timing(tau, window)
    name = actions["name"].to_numpy(dtype=object)
    start = actions["start_s"].to_numpy(dtype=np.float64)
    duration = actions["duration_s"].to_numpy(dtype=np.float64)
    seen_until = start - tau
    clamped = seen_until <= 0
    beyond = start >= duration  # False where the duration is unknown
    left_out = {BEYOND: tuple(name[beyond])}
    keep = ~beyond
    if early != "clamp":
        short = clamped if early == "drop" else seen_until < window - _TOLERANCE_S
        left_out[f"too little lies before the action's start − {tau:g} s"] = tuple(name[short & keep])
        keep &= ~short
    observed = carried(actions[keep]).assign(
        start_s=np.maximum(seen_until - window, 0.0)[keep],
        stop_s=np.where(clamped, ONE_FRAME_S, seen_until)[keep],
        role="observed",
    )
    action = carried(actions[keep]).assign(
        start_s=start[keep], stop_s=np.fmin(start + window, duration)[keep], role="action"
    )
    stem = [f"{n}@{tau:g}" for n in name[keep]]
    marks = pd.DataFrame({"pair": stem, "tau": repr(float(tau)), "clamped": np.where(clamped[keep], "1", "0")})
    rows = interleave(observed.join(marks), action.join(marks))
    return rows, {reason: names for reason, names in left_out.items() if names}


def past_clips(actions: pd.DataFrame, history: float) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """One clip an action, ``history`` seconds that end where the action starts: what a method of several anticipation
    times reads, which leaves the last of it out itself.

    Spans begin at 0 where the source does. An action at 0 has nothing before it and is left out.

    Args:
        actions: as for ``action_pairs``.
        history: length of a clip in seconds.

    Returns:
        The rows, named ``<name>@<history>-past``; and reason → names left out.

    Raises:
        OptionError: ``history`` not positive.
    """
    if not (math.isfinite(history) and history > 0):
        raise OptionError(f"history is {history}: give the length of a clip in seconds, more than 0.")
    name = actions["name"].to_numpy(dtype=object)
    start = actions["start_s"].to_numpy(dtype=np.float64)
    beyond = start >= actions["duration_s"].to_numpy(dtype=np.float64)  # False where the duration is unknown
    first = (start <= 0) & ~beyond
    left_out = {BEYOND: tuple(name[beyond]), "nothing lies before the action's start": tuple(name[first])}
    keep = ~(beyond | first)
    rows = carried(actions[keep]).assign(start_s=np.maximum(start - history, 0.0)[keep], stop_s=start[keep])
    rows.insert(0, "clip_id", [f"{n}@{history:g}-past" for n in name[keep]])
    return rows, {reason: names for reason, names in left_out.items() if names}


def action_clips(
    actions: pd.DataFrame, tau: float, window: float, early: Early, history: float | None
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """``past_clips`` where ``history`` is given, else ``action_pairs``.

    Raises:
        OptionError: ``history`` with an option of pairs, or values that make no clip.
    """
    if history is None:
        return action_pairs(actions, tau, window, early)
    for option, value, default in (("tau", tau, TAU_S), ("window", window, WINDOW_S), ("early", early, "clamp")):
        if value != default:
            raise OptionError(f"{option}={value} is of pairs of clips and means nothing with history: leave one out.")
    return past_clips(actions, history)


def part_pairs(clips: pd.DataFrame, cut_s: Mapping[str, float], action: Literal["rest", "whole"]) -> pd.DataFrame:
    """Pairs from whole trimmed clips: ``observed`` is [0, cut), ``action`` the ``rest`` or the ``whole`` clip.

    Args:
        clips: ``name`` (unique), ``source`` and columns to carry.
        cut_s: name → seconds; the time of the first frame that is not observed.
        action: what the recognition network sees; the anticipation paper's JHMDB protocol takes the whole.
    """
    clips = clips.reset_index(drop=True)
    cut = clips["name"].map(cut_s).to_numpy(dtype=np.float64)
    observed = carried(clips).assign(start_s=math.nan, stop_s=cut, role="observed", pair=clips["name"])
    begin = cut if action == "rest" else math.nan
    return interleave(
        observed, carried(clips).assign(start_s=begin, stop_s=math.nan, role="action", pair=clips["name"])
    )


def observed_until(path: Path, share: float, fps: float | None = None) -> float:
    """Time of the first frame after the first ``ceil(share × n)`` frames of a source; NaN if there is none."""
    with open_source(path, fps=fps) as source:
        times = source.times
    first = max(1, math.ceil(share * len(times) - 1e-9))
    return float(times[first]) if first < len(times) else math.nan


def carried(clips: pd.DataFrame) -> pd.DataFrame:
    """The columns that go into the manifest as they are."""
    return clips.drop(columns=["name", "start_s", "stop_s", "duration_s"], errors="ignore").reset_index(drop=True)


def interleave(observed: pd.DataFrame, action: pd.DataFrame) -> pd.DataFrame:
    """Put each observed clip before its action clip and name both after their pair."""
    rows = pd.concat([observed, action]).sort_index(kind="stable", ignore_index=True)
    rows.insert(0, "clip_id", [f"{pair}-{role}" for pair, role in zip(rows["pair"], rows["role"], strict=True)])
    return rows


def assert_no_leak(df: pd.DataFrame, name: str = "manifest") -> None:
    """Prove that no observed clip shows anything later than its action's start − tau.

    Looks at every pair that has a ``tau`` and is not marked ``clamped``.

    Raises:
        ManifestError: names each pair that leaks, lacks a partner, or joins two sources.
    """
    if not {"pair", "role", "tau"} <= set(df.columns):
        return
    rows = df[df["tau"] != ""]
    roles = {role: rows[rows["role"] == role] for role in ("observed", "action")}
    problems: list[str] = []
    for role, part in roles.items():
        twice = part.loc[part["pair"].duplicated(), "pair"]
        problems += [f"pair {p!r} has more than one {role} clip; give each its own pair" for p in twice.unique()]
    both = roles["observed"].merge(roles["action"], on="pair", how="outer", suffixes=("", "_action"), indicator=True)
    for side, lacking in (("left_only", "action"), ("right_only", "observed")):
        problems += [f"pair {p!r} has no {lacking} clip" for p in both.loc[both["_merge"] == side, "pair"]]
    both = both[both["_merge"] == "both"]
    apart = both["source"] != both["source_action"]
    problems += [f"pair {p!r} joins two sources; both clips must be of one video" for p in both.loc[apart, "pair"]]
    if "clamped" in both:
        both = both[both["clamped"] != "1"]
    limit = both["start_s_action"].fillna(0.0) - pd.to_numeric(both["tau"], errors="coerce")
    late = ~(both["stop_s"] <= limit + _TOLERANCE_S)  # an observed clip without a stop leaks too
    problems += [
        f"pair {pair!r} leaks: the observed clip ends at {stop:.6f} s, tau before its action is {end:.6f} s"
        for pair, stop, end in zip(both.loc[late, "pair"], both.loc[late, "stop_s"], limit[late], strict=True)
    ]
    if problems:
        raise ManifestError(name, problems)
