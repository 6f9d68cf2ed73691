"""What is known of a row before it trains: its resolved options, its splits, the optimiser steps that it will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdcache.data.loader import shuffled
from kdcache.errors import KdcacheError
from kdcache.log import quiet
from kdcache.methods import method as method_module
from kdcache.methods.contract import Stage
from kdcache.runs.ablation.calls import Calls
from kdcache.runs.prepare import prepare


@dataclass(frozen=True)
class RowSurvey:
    """What preparing a row's training tells."""

    options: Any
    """Resolved where it could be."""
    steps: int = 0
    """Optimiser steps of the network that answers; 0 where there is nothing to train."""
    splits: frozenset[str] = frozenset()
    problem: str = ""
    """Why it cannot be trained; empty where it can."""


def survey(calls: Calls, call: Mapping[str, Any]) -> RowSurvey:
    """Prepare a training and count its steps; streams stay in the shards, and nothing is trained.

    Stages are built one after the other with untrained networks. What is wrong with the row is a problem of it, as it
    would be in its training.
    """
    settings, options = calls.settings(call)
    method = method_module(settings.method)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            opened = prepare(settings, options, {"budget": 0})
            splits = frozenset(opened.data.splits)
            resolved = method.resolve(options, opened.data)
            predictor = method.predictor(resolved, opened.data)
            answers = {*predictor.trained_in, predictor.stage}
            stages = list(method.stages(resolved, opened.data))
            steps = sum(steps_of_stage(stage) for stage in stages if stage.name in answers)
    except KdcacheError as error:
        return RowSurvey(options, problem=str(error))
    return RowSurvey(resolved, steps, splits)


def steps_of_stage(stage: Stage) -> int:
    """Optimiser steps of all its epochs."""
    if stage.optimizer is None:
        return 0
    return stage.epochs * len(shuffled(stage.train, stage.batch_size, 1, np.random.default_rng(0)))
