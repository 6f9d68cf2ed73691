"""The small files of a run's folder that are read back, each held against its digest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdcache.engine.checkpoint import SUMMARY
from kdcache.errors import OptionError
from kdcache.files import opened
from kdcache.seals import digest_of_file, is_broken, is_sealed, read_json, write_json

CONFIG, METRICS, RECIPES = "config.toml", "metrics.json", "recipes.json"
HISTORY, PREDICTIONS = "metrics.csv", "predictions.csv"

_FILES = "files"
"""In ``metrics.json``: SHA-256 of the tables, which cannot hold their own, and of what says which run this is."""


def write_result(run: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``, the last file of a run and the mark that it has finished."""
    write_json(run / METRICS, {**metrics, _FILES: {name: digest_of_file(run / name) for name in _held(run)}})


def _held(run: Path) -> list[str]:
    """Files of a finished run that never change again; what is not there needs no digest."""
    stages = (f"{path.parent.name}/{SUMMARY}" for path in sorted(run.glob(f"*/{SUMMARY}")))
    return [name for name in (HISTORY, PREDICTIONS, CONFIG, RECIPES, *stages) if (run / name).exists()]


def result(run: Path) -> dict[str, Any]:
    """The metrics of a finished run; ``OptionError`` for a file that is damaged, or of another run."""
    check_files(run, CONFIG)
    metrics = read_json(run / METRICS, _remedy(run, METRICS))
    metrics.pop(_FILES, None)
    scores = [value for name, value in metrics.items() if name.partition("@")[0] in ("last", "best")]
    if "epochs" not in metrics or not all(_nested(each, 3) for each in scores):
        raise OptionError(f"{run / METRICS} is damaged (it holds no metrics of a run): {_remedy(run, METRICS)}.")
    return metrics


def _nested(value: Any, depth: int) -> bool:
    """Whether a value is a table of tables, so many deep."""
    return depth == 0 or (isinstance(value, dict) and all(_nested(one, depth - 1) for one in value.values()))


def recipes(run: Path) -> dict[str, Any]:
    """For each cached stream that a run read its ``digest`` and ``recipe``; empty where there is no such file."""
    path = run / RECIPES
    return read_json(path, _remedy(run, RECIPES)) if path.exists() else {}


def history(run: Path) -> pd.DataFrame:
    """The rows of ``metrics.csv``; ``OptionError`` for a file that is damaged."""
    check_files(run, HISTORY)
    try:
        with opened(run / HISTORY) as file:
            return pd.read_csv(file)
    except (ValueError, OverflowError) as error:  # pandas' own are among them, and text that is not UTF-8
        raise OptionError(f"{run / HISTORY} is damaged ({error}): {_remedy(run, HISTORY)}.") from error


def predictions(run: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Those of these columns that ``predictions.csv`` has, as text; empty where there is no such file.

    Raises:
        OptionError: it is damaged.
    """
    if not (run / PREDICTIONS).exists():
        return pd.DataFrame(columns=list(columns))
    check_files(run, PREDICTIONS)
    try:
        with opened(run / PREDICTIONS) as file:
            return pd.read_csv(file, usecols=lambda name: name in columns, dtype=str, keep_default_na=False)
    except (ValueError, OverflowError) as error:
        raise OptionError(f"{run / PREDICTIONS} is damaged ({error}): {_remedy(run, PREDICTIONS)}.") from error


def check_files(run: Path, *names: str) -> None:
    """``OptionError`` for a file of a finished run, or one of these, that is not as it was written.

    One that holds a digest of its own and is whole came from another run, or ``metrics.json`` did; its digest taken
    out, someone has changed it on purpose.
    """
    if not (run / METRICS).exists():
        return
    known = read_json(run / METRICS, _remedy(run, METRICS)).get(_FILES) or {}
    for path, name in ((run / name, name) for name in names or _held(run)):
        if name not in known or not path.exists() or digest_of_file(path) == known[name]:
            continue
        if name in (HISTORY, PREDICTIONS):
            raise OptionError(f"{path} is not as it was written, its SHA-256 differs: {_remedy(run, name)}.")
        if is_sealed(path) and not is_broken(path):
            raise OptionError(f"{path} and {METRICS} are not of one run: restore both, or train again in a new folder.")


def _remedy(run: Path, name: str) -> str:
    """What to do about a damaged file that a run's command writes again."""
    others = "" if name == METRICS else f" and {METRICS}"
    return f"restore it; or delete it{others} and repeat the run's command with out={run}, which writes it again"
