"""What the runs of a comparison differ in, beside their rows: read from the runs themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.methods.contract import VALIDATION
from kdcache.runs.ablation.calls import TEST
from kdcache.runs.ablation.replicates import Replicate, run_folder
from kdcache.runs.ablation.rows import Comparison
from kdcache.runs.folder import predictions
from kdcache.runs.run import Run


@dataclass(frozen=True)
class Factors:
    """How many different values the runs of a row have of each thing that a number may depend on.

    Numbers are the largest of any row on any one split of the clips, for splits differ in their clips anyway.
    """

    splits: tuple[str, ...]
    """Split columns of the manifest, or folds; empty where rows name their own."""
    draws: int
    seeds: int
    label_draws: int
    """Choices of the clips that keep their labels; 0 where all do."""
    tests: int
    """Sets of clips that test; 0 where there are none, or runs do not say."""
    validations: int
    """Sets of clips that validate; 0 as for ``tests``."""
    backbones: int
    """Sets of weights under which the features were computed; 0 where runs do not say."""
    caches: int
    teachers: int
    """Seeds of teachers that are shared by several runs; 0 where each run trains its own."""


def factors(comparison: Comparison, folder: Path, replicates: Sequence[Replicate]) -> Factors:
    """Count what varies over the replicates of each row."""
    of_row = [[(each, Run(run_folder(folder, row.slug, each))) for each in replicates] for row in comparison.runnable]

    def most(value: Callable[[Run], Any]) -> int:
        """The largest number of values that any row has on one split; None is no value."""
        counts = [0]
        for runs in of_row:
            found: dict[str | None, set[Any]] = {}
            for each, run in runs:
                found.setdefault(each.split_column, set()).add(value(run))
            counts += [len(values - {None}) for values in found.values()]
        return max(counts)

    held_out: dict[Any, dict[str, str]] = {}

    def clips_of(split: str) -> Callable[[Run], str | None]:
        def of_run(run: Run) -> str | None:
            key = run.resolved.get("samples", run.path)  # runs of the same examples need not all be read
            if key not in held_out:
                held_out[key] = _held_out(run)
            return held_out[key].get(split)

        return of_run

    return Factors(
        splits=tuple(_distinct(each.split_column for each in replicates if each.split_column)),
        draws=len({each.draw for each in replicates}),
        seeds=len({each.seed for each in replicates}),
        label_draws=most(_label_draw),
        tests=most(clips_of(TEST)),
        validations=most(clips_of(VALIDATION)),
        backbones=most(_backbone),
        caches=most(lambda run: run.settings.shards),
        teachers=most(_teacher),
    )


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _label_draw(run: Run) -> int | None:
    """The seed by which labelled clips are drawn, where not all keep their labels."""
    return run.options.label_seed if getattr(run.options, "label_fraction", 1) < 1 else None


def _teacher(run: Run) -> int | None:
    """The seed of a teacher that runs share, where the run has more than the stage that answers."""
    return getattr(run.options, "teacher_seed", None) if len(run.metrics["stages"]) > 1 else None


def _backbone(run: Run) -> str | None:
    """The weights of the backbones below the features that a run reads, as text to compare."""
    found = {name: recipe.get("backbone", {}).get("weights") for name, recipe in run.recipes.items()}
    return json.dumps(found, sort_keys=True) if any(found.values()) else None


def _held_out(run: Run) -> dict[str, str]:
    """Of each split that a run was scored on a digest of its clips, or pairs."""
    table = predictions(run.path, ["pair", "clip_id", "split"])
    name = "pair" if "pair" in table else "clip_id"
    return {
        str(split): hashlib.sha256(json.dumps(sorted(set(part[name]))).encode()).hexdigest()
        for split, part in table.groupby("split")
    }
