"""What a comparison varied and what it held fixed, in sentences: its numbers speak for the former alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdcache.options import shown
from kdcache.runs.ablation.conclusion import Conclusion


def setting(conclusion: Conclusion) -> list[str]:
    """A sentence of what varied, and one of what was held fixed."""
    f = conclusion.factors
    of_draws, varied, fixed = list[str](), list[str](), list[str]()
    for count, what in (
        (f.tests if f.tests > 1 or len(f.splits) < 2 else 0, "the clips that test"),
        (f.label_draws, "the clips that keep their labels"),
        (f.validations, "the clips that validate"),
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
    within = " in each" * bool(varied)
    varied.append(f"{f.seeds} seed{'s' * (f.seeds > 1)} of the trained networks{within}")
    if f.teachers:
        fixed.append("the teacher that rows and seeds share" + " within a draw" * (f.draws > 1))
    if len(conclusion.tuning) and conclusion.tuning["trial"].nunique() > 1:
        (varied if "draw" in conclusion.tuning else fixed).append("what tuning chose")
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
        parts.append(f"Where tuning started: {_settings(begun)}.")
    return " ".join(parts)


def tuned_names(tuning: pd.DataFrame) -> list[str]:
    """The options that trials set, in order; empty without trials."""
    if not len(tuning):
        return []
    return list(dict.fromkeys(name for text in tuning["settings"] for name in json.loads(text)))


def _settings(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in options.items())


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
