"""What each draw of a comparison has: which clips train, validate and test, which keep their labels, which arrays."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcache.data.training_data import TrainingData
from kdcache.errors import KdcacheError
from kdcache.log import quiet
from kdcache.methods import method as method_module
from kdcache.methods.contract import VALIDATION
from kdcache.methods.labels import keep_fraction
from kdcache.runs.ablation.calls import Calls, Phase
from kdcache.runs.ablation.replicates import draw_numbers
from kdcache.runs.config import RunSettings
from kdcache.runs.prepare import prepare
from kdcache.runs.presets import TableRow
from kdcache.store import Cache


@dataclass(frozen=True)
class Opened:
    """What runs of the same settings on the same inputs read."""

    content: str
    """Digest of the examples and of their arrays."""
    labels: Mapping[str, Tensor]
    """Class indices of the training examples, by target."""
    clips: Mapping[str, frozenset[str]]
    """Of each split."""
    problem: str = ""
    """Why it cannot be read, as training will say."""


@dataclass
class Draws:
    """The draws of a comparison, each read when it is first asked for, and nothing of a clip but its digest."""

    calls: Calls
    _known: dict[tuple[Any, ...], Opened] = field(default_factory=dict, repr=False)

    @property
    def numbers(self) -> list[int]:
        """0, 1, 2 …"""
        return [draw for draw in draw_numbers(self.calls.draws) if draw is not None]

    def opened(self, row: TableRow, column: str | None, draw: int, phase: Phase, seed: int | None = None) -> Opened:
        """What a row's runs read in a draw, with another ``validation_seed`` where one is given."""
        return self._opened(*self._settings(row, column, draw, phase, seed))

    def digest(self, row: TableRow, column: str | None, draw: int, seed: int | None = None) -> str:
        """Of all that a draw varies in a row's final runs: examples, labels that are kept, arrays; empty where they
        cannot be read."""
        settings, options = self._settings(row, column, draw, "final", seed)
        opened = self._opened(settings, options)
        if opened.problem:
            return ""
        fraction = getattr(options, "label_fraction", 1.0)
        kept = {
            target: keep_fraction(y, fraction, getattr(options, "label_seed", 0)).tolist()
            for target, y in opened.labels.items()
            if fraction < 1 and getattr(options, "target", target) in ("auto", target)
        }
        return _digest([opened.content, kept])

    def holds_out(self, row: TableRow, column: str | None, draw: int) -> bool:
        """Whether the draw decides which groups validate in a row's final runs."""
        settings, _ = self._settings(row, column, draw, "final", None)
        names = settings.validation_as == VALIDATION and VALIDATION in self.calls.named(row, column)
        return bool(settings.validation) and not names and "validation_seed" not in row.options

    def _settings(
        self, row: TableRow, column: str | None, draw: int, phase: Phase, seed: int | None
    ) -> tuple[Any, Any]:
        call = self.calls(row, column, draw, phase, {})
        if seed is not None and "validation_seed" not in row.options:
            call["validation_seed"] = seed
        return self.calls.settings(call)

    def _opened(self, settings: RunSettings, options: Any) -> Opened:
        key = (settings, tuple(method_module(settings.method).inputs(options)))
        if key not in self._known:
            self._known[key] = _read(settings, options, self.calls.own_caches)
        return self._known[key]


def _read(settings: RunSettings, options: Any, arrays: bool) -> Opened:
    """``arrays``: whether draws may differ in these."""
    try:  # trainings warn, once
        with quiet(logging.ERROR), torch.random.fork_rng(devices=[]):
            made = prepare(settings, options, {"budget": 0})
            digests = _digests(settings, made) if arrays else {}
    except KdcacheError as error:
        return Opened("", {}, {}, str(error))
    splits, names = made.examples.splits, made.examples.clip_ids
    clips = {
        split: frozenset(names[i] for rows in its.rows.values() for i in rows.tolist() if i >= 0)
        for split, its in splits.items()
    }
    content = _digest([made.resolved["samples"], made.resolved["recipe"], digests])
    return Opened(content, splits["train"].labels, clips)


def _digests(settings: RunSettings, made: TrainingData) -> dict[str, list[str]]:
    """Of each stream that is read those of its clips' arrays."""
    cache = Cache(str(settings.shards), settings.recipe or ())
    row_of = {clip: row for row, clip in enumerate(cache.clips["clip_id"].tolist())}
    rows = [row_of[clip] for clip in made.examples.clip_ids]
    return {name: [digests[row] for row in rows] for name in made.recipes if (digests := cache.digests(name))}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
