"""The tables of README and docs/evidence.md from what ``evidence.py`` has stored.

python benchmarks/evidence_tables.py
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

from common import RESULTS

NAMES = {
    "msr-tenth": "MSR Action3D, a tenth of the labels",
    "jhmdb-tenth": "JHMDB joints, splits 1 and 2, a tenth of the labels",
    "msr": "MSR Action3D, all labels",
    "jhmdb": "JHMDB joints, splits 1 and 2, all labels",
    "weizmann": "Weizmann RGB, one person out",
    "weizmann-anticipation": "Weizmann RGB, first half seen, one person out",
}
SHORT = {
    "early": ("Teacher-student only", "Self-distillation only", "Both", "TS-LSTM*"),
    "anticipation": ("L_direct", "L~_d(R, A)", "L~_d(A, R)", "L_d(A, R)"),
}
OWN = {"early": "Both", "anticipation": "L_d(A, R)"}
"""The whole of a method."""
PAPER = {"msr-tenth": "+3.8, +6.2", "jhmdb-tenth": "+3.8, +6.2", "weizmann-anticipation": "+1.2"}
"""Gain of the whole method over the reference in the paper's tables, on its data: Table 3 of early recognition (UCF101,
SYSU) for a tenth of the labels, else its Table 1; Table 1 of anticipation (JHMDB, RGB)."""
ALL_LABELS = "+0.3 … +2.3"
REFERENCE = "Without distillation"


def cell(effect: dict[str, Any]) -> str:
    """A difference and its simultaneous interval, in points."""
    return f"{round(effect['difference'], 1) + 0.0:+.1f} [{effect['low']:.1f}, {effect['high']:.1f}]".replace("-", "−")


def bold(effect: dict[str, Any]) -> str:
    """The same, bold where the interval is without 0."""
    mark = "**" * (effect["low"] > 0 or effect["high"] < 0)
    return f"{mark}{cell(effect)}{mark}"


def effects_of(found: dict[str, Any], weights: str) -> dict[str, dict[str, Any]]:
    """Row → its difference to the reference row."""
    return {each["row"]: each for each in found["effects"] if each["weights"] == weights}


def small(everything: dict[str, Any], method: str) -> list[str]:
    """README's table of a method: one line for each comparison."""
    rows, own = SHORT[method], OWN[method]
    header = ["", "without", *rows, f"could be seen of {own}", f"the paper's gain of {own}"]
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for name, found in everything.items():
        effects = effects_of(found, "best")
        if not set(rows) <= set(effects):
            continue
        level = found["test, mean ± std over draws"]["best"][REFERENCE]
        cells = [level, *(bold(effects[row]) for row in rows), f"{effects[own]['detectable']:.1f}"]
        lines.append(f"| {NAMES[name]} | {' | '.join([*cells, PAPER.get(name, ALL_LABELS)])} |")
    return lines


def full(name: str, found: dict[str, Any]) -> list[str]:
    """Every row of a comparison, at the epoch that validation clips select and at the last."""
    lines = [f"### {NAMES[name]}", "", f"`python benchmarks/evidence.py DATA --work FOLDER --only {name}`", ""]
    header = [found["metric"], "best epoch", "difference", "could be seen", "p, adjusted", "last epoch", "difference"]
    lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    levels = found["test, mean ± std over draws"]
    best, last = effects_of(found, "best"), effects_of(found, "last")
    for row, level in levels["best"].items():
        if row not in best:
            lines.append(f"| {row} | {level} | | | | {levels['last'][row]} | |")
            continue
        its = best[row]
        seen = f"{its['detectable']:.1f} | {its['p_adjusted']:.3f}"
        lines.append(f"| {row} | {level} | {cell(its)} | {seen} | {levels['last'][row]} | {cell(last[row])} |")
    edges = [f"{each['row']}, draw {each['draw']} ({each['edge']})" for each in found["chosen"] if each["edge"]]
    steps = ", ".join(str(each) for each in found["steps"] if each)
    lines += ["", f"Optimiser steps of a run: {steps}{' (neighbours: none)' * (0 in found['steps'])}."]
    lines += textwrap.wrap(f"Chosen on the edge of what was searched: {'; '.join(edges)}.", 130) if edges else []
    return [*lines, "", validation(found), ""]


def validation(found: dict[str, Any]) -> str:
    """How good the teacher is that distils, beside the students: what settings were chosen by, not test clips."""
    scores: dict[str, list[float]] = {}
    for each in found["chosen"]:
        scores.setdefault(each["row"], []).append(each["score"])
    own = next(row for row in OWN.values() if row in scores)
    teacher = next(row for row in scores if row.startswith("teacher of ") and own in row)
    means = {row: sum(scores[row]) / len(scores[row]) for row in (teacher, REFERENCE, own)}
    shown = (f"{row.split(' of ')[0]} {mean:.1f}" for row, mean in means.items())
    return f"Validation clips, of the chosen settings, mean over draws: {', '.join(shown)}."


def main() -> None:
    """Run as a script."""
    everything = json.loads((RESULTS / "evidence.json").read_text())["results"]
    for method in SHORT:
        print("\n".join(small(everything, method)), end="\n\n")
    for name, found in everything.items():
        print("\n".join(full(name, found)))


if __name__ == "__main__":
    main()
