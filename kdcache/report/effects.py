"""What each row of a comparison gains, as a table and as sentences: effects and intervals first, p last."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from kdcache.metrics.early import column_title
from kdcache.report.costs import UNKNOWN
from kdcache.runs.ablation.results import UNIT
from kdcache.runs.ablation.rows import Comparison

Line = Mapping[Hashable, Any]
"""A line of ``results.tests``."""


def effects_section(tests: pd.DataFrame, results: pd.DataFrame, weights: str, gains: Mapping[str, float]) -> list[str]:
    """The table of effects of one kind of weights, and a sentence for each row.

    Args:
        tests: see ``results.tests``.
        results: see ``results.collect``.
        weights: ``best`` or ``last``.
        gains: row → the paper's gain, see ``paper_gains``.
    """
    lines = tests[tests["weights"] == weights].to_dict("records")
    first = lines[0]
    title, against = column_title(first["metric"]), "; ".join(dict.fromkeys(line["against"] for line in lines))
    if first["units"] == 1:
        count = f"{first['runs']} seed{'s' * (first['runs'] > 1)}"
        head = f"{title} against {against}, points: mean and standard deviation over {count} of one draw"
        return [head, "", *_without_interval(lines, gains), "", ONE_UNIT]
    interval = f"{100 * first['level']:g} % intervals"
    if len(lines) > 1:
        interval += f" that hold for all {len(lines)} rows at once (Bonferroni)"
    over = units_in_words(results)
    seeds = "; seeds are averaged first" if first["runs"] > first["units"] else ""
    head = f"{title} against {against}, points: mean over {over}, with {interval}{seeds}"
    said = [f"- {sentence(line, gains.get(line['row']))}" for line in lines]
    return [head, "", *_with_interval(lines, gains), "", *said]


ONE_UNIT = (
    "All seeds share one draw: its labels, its validation clips, its features. The spread over seeds says how far "
    "initialisation and order move the number, and nothing about other draws: there is no interval and no test."
)


def units_in_words(results: pd.DataFrame) -> str:
    """``5 draws``, ``9 splits``, ``10 units (2 splits × 5 draws)``."""
    splits, draws = (results[name].nunique() for name in UNIT)
    if splits > 1 and draws > 1:
        return f"{len(results.drop_duplicates(list(UNIT)))} units ({splits} splits × {draws} draws)"
    return f"{splits} splits" if splits > 1 else f"{draws} draw" + "s" * (draws > 1)


def paper_gains(
    comparison: Comparison, shown: Mapping[str, str | None], against: Mapping[str, str], metric: str
) -> dict[str, float]:
    """Row → by how much the paper has it above its reference row, in the column of the paper that holds ``metric``.

    Args:
        comparison: whose rows.
        shown: see ``tables.shown_metrics``.
        against: row → its reference row.
        metric: by which rows are compared.
    """
    column = next((c for c, its in shown.items() if its == metric and c in comparison.columns), "")
    rows = {row.name: row for row in comparison.compared}
    found = {row: comparison.paper_gain(rows[row], rows[base], column) for row, base in against.items()}
    return {row: gain for row, gain in found.items() if gain is not None}


def sentence(line: Line, gain: float | None) -> str:
    """What a row's numbers say, in words.

    Args:
        line: of ``results.tests``, over several units.
        gain: the paper's.
    """
    row, low, high = line["row"], line["low"], line["high"]
    if math.isnan(low):
        return _constant(line)
    if low > 0:
        text = f"{row} gains between {low:.1f} and {high:.1f} points."
    elif high < 0:
        text = f"{row} loses between {-high:.1f} and {-low:.1f} points."
    else:
        text = f"{row}: no difference is shown; a gain above {high:.1f} points or a loss above {-low:.1f} is excluded."
    if not math.isnan(line["low_draws"]):
        text += f" Over draws alone, splits averaged: {_interval(line['low_draws'], line['high_draws'])}."
    return " ".join(filter(None, [text, _beside_paper(line, gain)]))


def _constant(line: Line) -> str:
    """What can be said of differences that are the same in every unit, whose spread an interval would be made of."""
    of_all = f"{line['row']}: {signed(line['difference'])} points in each of {line['units']} units"
    text = f"{of_all}; differences that do not vary have no interval and no t-test."
    if line["equal"] < line["units"]:
        text += f" The sign-flip test, which needs no spread, has p = {_p(line['p_sign_flips'])}, not adjusted."
    return text


def signed(value: float) -> str:
    """With its sign, one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def _beside_paper(line: Line, gain: float | None) -> str:
    """Whether the paper's gain could have been seen, and whether it agrees; empty where the paper has none."""
    if not gain:
        return ""
    named = f"the paper's {'gain' if gain > 0 else 'loss'} of {abs(gain):.1f}"
    if line["low"] <= 0 <= line["high"] and abs(gain) < line["detectable"]:
        return f"This design could not have seen {named} (it sees {line['detectable']:.1f} or more)."
    if line["low"] <= gain <= line["high"]:
        return f"The interval holds {named}."
    return f"It excludes {named}, which was made on other data."


def _with_interval(lines: list[dict[Hashable, Any]], gains: Mapping[str, float]) -> list[str]:
    header = ["row", "difference", f"{100 * lines[0]['level']:g} % interval", "detectable (80 % power)"]
    header += ["paper's gain"] * bool(gains) + ["higher in", "p, adjusted"]
    table = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for line in lines:
        ties = f", equal in {line['equal']}" if line["equal"] else ""
        cells = [line["row"], signed(line["difference"]), _interval(line["low"], line["high"])]
        cells += [UNKNOWN if math.isnan(line["detectable"]) else f"{line['detectable']:.1f}"]
        cells += [_gain(line, gains)] * bool(gains)
        cells += [f"{line['higher']} of {line['units']}{ties}", _p(line["p_adjusted"])]
        table.append(f"| {' | '.join(cells)} |")
    return table


def _without_interval(lines: list[dict[Hashable, Any]], gains: Mapping[str, float]) -> list[str]:
    header = ["row", "difference", "std over seeds", *["paper's gain"] * bool(gains)]
    table = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for line in lines:
        spread = UNKNOWN if math.isnan(line["std_seeds"]) else f"{line['std_seeds']:.1f}"
        cells = [line["row"], signed(line["difference"]), spread, *[_gain(line, gains)] * bool(gains)]
        table.append(f"| {' | '.join(cells)} |")
    return table


def _gain(line: Line, gains: Mapping[str, float]) -> str:
    return signed(gains[line["row"]]) if line["row"] in gains else ""


def _interval(low: float, high: float) -> str:
    return UNKNOWN if math.isnan(low) else f"{signed(low)} to {signed(high)}"


def _p(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"
