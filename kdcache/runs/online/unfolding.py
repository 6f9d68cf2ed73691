"""The answers of a run of early recognition while a clip of any source unfolds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from kdcache.errors import OptionError
from kdcache.metrics.early import percent
from kdcache.numerics import full_precision
from kdcache.runs.online.answer import Prediction, Span, class_names
from kdcache.runs.online.clip import spans_of
from kdcache.runs.online.recipes import find_weights, recipes_of, restore
from kdcache.runs.online.streaming import StreamingFeature, load_networks, stream_features
from kdcache.runs.run import Run


class Stepping(Protocol):
    """A network that goes from level to level: ``kdcache.methods.recurrent`` and ``early_baselines``."""

    def step(self, x_n: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x_n ``[B, d]`` → logits ``[B, C]`` and the new state."""
        ...


class Unfolding:
    """A run of ``early``, loaded; see ``LoadedRun``.

    Raises:
        OptionError, WeightsError: see ``kdcache.predict``.
    """

    def __init__(self, run: Run, which: str, weights: Any) -> None:
        if run.options.model == "teacher":
            raise OptionError(
                f"{run.path} is a teacher, which needs the whole clip: use a run of a model that looks back."
            )
        recipes = recipes_of(run)
        chosen = find_weights(recipes, weights, run.settings.weights)
        self._streams = [restore(name, recipe, chosen[name]) for name, recipe in recipes.items()]
        self._network = cast(Stepping, run.network(which))
        self._data = run.training_data.data
        self._classes = tuple(self._data.classes[run.target])
        self._names = class_names(run, self._classes)
        self._nets = [load_networks(stream, str(self._data.device)) for stream in self._streams]

    def answers(self, source: Path, span: Span) -> Iterator[Prediction]:
        """See ``LoadedRun``; one answer for each level."""
        clips = spans_of(self._streams, source, *span)
        each = zip(self._streams, clips, self._nets, strict=True)
        return self._steps([stream_features(stream, clip, nets) for stream, clip, nets in each])

    def _steps(self, parts: Sequence[Iterator[StreamingFeature]]) -> Iterator[Prediction]:
        """Step by step through the levels of the joined streams."""
        data = self._data
        observed = percent(data.inputs["x"].shape[0])
        state = None
        for level, seen in enumerate(zip(*parts, strict=True)):
            x = np.concatenate([part.features.astype(np.float32) for part in seen])
            with torch.no_grad(), full_precision(), data.autocast():
                scores, state = self._network.step(torch.from_numpy(x)[None].to(data.device), state)
            probabilities = torch.softmax(scores[0].float(), -1).cpu().numpy()
            of = (self._classes, self._names, len(observed))
            yield Prediction(level + 1, observed[level], seen[0].seconds, probabilities, *of)
