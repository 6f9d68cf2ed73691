"""What a comparison varied and what it held fixed, in sentences: its numbers speak for the former alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdcache.options import shown
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.trials import MILESTONES


def setting(conclusion: Conclusion) -> list[str]:
    """A sentence of what varied, and one of what was held fixed."""
    f, validated = conclusion.factors, "validation" in set(conclusion.results["split"])
    of_draws, varied, fixed = list[str](), list[str](), list[str]()
    for count, what in (
        (f.label_draws, "the clips that keep their labels"),
        (f.divisions if validated else 0, "the clips that validate"),
        (f.backbones, "the weights of the backbone"),
    ):
        if count > 1:
            of_draws.append(what + f", {count} different" * (count != f.draws))
        elif count:
            fixed.append(what)
    if f.draws > 1:
        varied.append(f"{f.draws} draws" + f" ({'; '.join(of_draws)})" * bool(of_draws))
    if len(f.splits) > 1:
        varied.append(f"{len(f.splits)} splits of the clips")
    else:
        fixed.insert(0, "the clips that test")
    within = " in each" * bool(varied)
    varied.append(f"{f.seeds} seed{'s' * (f.seeds > 1)} of the trained networks{within}")
    if f.teachers:
        fixed.append("the teacher that rows and seeds share" + " within a draw" * (f.draws > 1))
    if len(conclusion.tuning):
        fixed.append("what tuning chose")
    where = " within a split" * (len(f.splits) > 1)
    lines = [f"Varied: {listed(varied)}."]
    return [*lines, "", f"Held fixed{where}: {listed(fixed)}."] if fixed else lines


def common_options(conclusion: Conclusion) -> str:
    """What the call set for all rows; options that tuning changed after that are named apart."""
    searched = tuned_names(conclusion.tuning)
    kept = {name: value for name, value in conclusion.options.items() if name not in searched}
    begun = {name: value for name, value in conclusion.options.items() if name in searched}
    parts = []
    if kept:
        parts.append(f"Set for all rows: {_settings(kept)}.")
    if begun:
        parts.append(f"Set as the first trial, then tuned for each row: {_settings(begun)}.")
    return " ".join(parts)


def tuned_names(tuning: pd.DataFrame) -> list[str]:
    """The options that trials set, in order; empty without trials."""
    if not len(tuning):
        return []
    return list(dict.fromkeys(name for text in tuning["settings"] for name in json.loads(text)))


def tuning_section(tuned: pd.DataFrame, metric: str) -> list[str]:
    """The settings that were selected for each row; above them a line that says how, below what lies on an edge.

    A setting that a trial leaves as the row has it is empty where ``tuning.csv`` does not say what it is.
    """
    by = ["row"]
    if len(tuned[["row", "split_column"]].drop_duplicates()) > tuned["row"].nunique():
        by.append("split_column")
    counts = sorted(tuned.groupby(by)["trial"].nunique().unique())
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    known = list(tuned.columns[list(tuned.columns).index("trial") + 1 : list(tuned.columns).index("settings")])
    varied = list(dict.fromkeys([*known, *(name for name in tuned_names(tuned) if name != MILESTONES)]))
    over = f" of {listed(varied)}" * bool(varied)
    lines = [f"Selected from {count} trials{over} by {metric} on validation clips" + " of each split" * (len(by) - 1)]
    columns = [*by, "trial", *varied, "score", "score of its own settings"]
    lines += ["", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    edges = []
    for names, part in tuned.groupby(by, sort=False):
        if not part["chosen"].any():  # every trial failed
            continue
        best, own = part[part["chosen"]].iloc[0], part[part["trial"] == part["trial"].min()].iloc[0]
        cells = [*map(str, names), str(best["trial"]), *(_chosen(best, name) for name in varied)]
        cells += [f"{trial['score']:.1f}" for trial in (best, own)]
        lines.append(f"| {' | '.join(cells)} |")
        if "edge" in best and (edge := _edge(best["edge"])):
            edges.append(f"{', '.join(map(str, names))} ({edge})")
    if edges:
        lines += ["", f"On the edge of the space, beyond which something better may lie: {'; '.join(edges)}."]
    return lines


def _chosen(trial: pd.Series[Any], name: str) -> str:
    """What a trial ran with, as its column says, or its settings where there is no such column."""
    value = trial[name] if name in trial else json.loads(trial["settings"]).get(name)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None or pd.isna(value) else str(value)


def _edge(value: Any) -> str:
    """The options whose chosen value lies on an edge; empty: none."""
    return "" if pd.isna(value) or value in (False, "", "False") else str(value)


def _settings(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in options.items())


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
