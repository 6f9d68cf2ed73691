"""What tuning searched, what it chose for each row, and what lies on an edge of the space."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kdcache.options import shown
from kdcache.report.setting import listed, tuned_names
from kdcache.runs.ablation.conclusion import Conclusion
from kdcache.runs.ablation.tuning import EACH


def tuning_section(conclusion: Conclusion) -> list[str]:
    """The settings that were selected for each row; above them a line that says how, below what was searched."""
    c, tuned = conclusion, conclusion.tuning
    by = ["row"]
    if len(tuned[["row", "split_column"]].drop_duplicates()) > tuned["row"].nunique():
        by.append("split_column")
    by += ["draw"] * ("draw" in tuned)
    counts = sorted(tuned.groupby(by)["trial"].nunique().unique())
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    known = _columns(tuned)
    others = [name for name in tuned_names(tuned) if name not in known and not name.endswith("milestones")]
    lines = [f"Selected from {count} trials by {c.monitor} on validation clips{_of_each(by)}"]
    header = [*by, "trial", *known, *["also"] * bool(others), "score", "score of its own settings"]
    lines += ["", f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    edges = []
    for names, part in tuned.groupby(by, sort=False):
        if not part["chosen"].any():  # every trial failed
            continue
        best, own = part[part["chosen"]].iloc[0], part[part["trial"] == part["trial"].min()].iloc[0]
        settings = json.loads(best["settings"])
        cells = [*map(str, names), str(best["trial"])]
        cells += ["" if pd.isna(best[name]) else str(best[name]) for name in known]
        cells += [_settings(settings, others)] * bool(others)
        cells += [f"{trial['score']:.1f}" for trial in (best, own)]
        lines.append(f"| {' | '.join(cells)} |")
        if "edge" in best and not pd.isna(best["edge"]) and best["edge"]:
            edges.append(f"{', '.join(map(str, names))} ({best['edge']})")
    lines += searched(c.search)
    if edges:
        lines += ["", f"On the edge of the space, beyond which something better may lie: {'; '.join(edges)}."]
    return lines


def _of_each(by: Sequence[str]) -> str:
    units = [{"split_column": "split", "draw": "draw"}[name] for name in by[1:]]
    return f" of each {' and '.join(units)}" if units else ""


def searched(search: Mapping[str, Any]) -> list[str]:
    """The values of each dimension, and which were widened, for the rows that were searched together.

    Args:
        search: see ``Conclusion.search``. Nothing is said without its ``space``, as in comparisons of version 0.1.
    """
    if not search.get("space"):
        return []
    count = search["tune_draws"]
    on = "draw 0" if count == 1 else "each draw by itself" if count == EACH else f"draws 0 to {count - 1}"
    seeds = f"{search['tune_seeds']} seed" + "s" * (search["tune_seeds"] > 1)
    lines = ["", f"Searched, the same values for all rows that have the option (trials on {on} with {seeds} each):", ""]
    together: dict[str, list[Mapping[str, Any]]] = {}
    for group in search["space"]:
        together.setdefault(", ".join(group["rows"]), []).append(group)
    for rows, groups in together.items():  # one for each split column
        values: dict[str, list[Any]] = {}
        for group in groups:
            for name, its in group["values"].items():
                values[name] = _union(values.get(name, []), its)
        lengths = _union([], [group["length"] for group in groups])
        parts = [f"{name} {', '.join('own' if v is None else shown(v) for v in its)}" for name, its in values.items()]
        all_of = " for all of them" * (len(groups[0]["rows"]) > 1)
        chosen = f"length × {' or × '.join(map(shown, lengths))} was chosen" + all_of
        wider = _union(
            [],
            [
                f"{name} ({', '.join(s for s, n in sides.items() if n)})"
                for group in groups
                for name, sides in group["widened"].items()
            ],
        )
        widened = f"; widened{all_of}: {listed(wider)}" * bool(wider)
        lines.append(f"- {rows}: {'; '.join(parts)}. {chosen.capitalize()}{widened}.")
    return lines


def _columns(tuned: pd.DataFrame) -> list[str]:
    """What ``tuning.csv`` has a column for."""
    names = list(tuned.columns)
    return names[names.index("trial") + 1 : names.index("settings")]


def _settings(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={shown(settings[name])}" for name in names if settings.get(name) is not None)


def _union(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Each value once; numbers ascending."""
    found = list(dict.fromkeys([*first, *second]))
    numbers = sorted(v for v in found if isinstance(v, (int, float)))
    return [v for v in found if not isinstance(v, (int, float))] + numbers
