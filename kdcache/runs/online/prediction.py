"""``kdcache.predict``: what a run says of a source, while it unfolds or as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from kdcache.errors import OptionError
from kdcache.metrics.early import percent
from kdcache.runs.online.answer import Prediction, class_names
from kdcache.runs.online.clip import spans_of
from kdcache.runs.online.recipes import find_weights, recipes_of, restore
from kdcache.runs.online.streaming import StreamingFeature, stream_features

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.runs.train import Run

StrPath = str | os.PathLike[str]
Span = tuple[StrPath | None, float | None, float | None, float | None]
"""Skeleton file, start and stop in seconds, frame rate of images."""


class Stepping(Protocol):
    """A network that goes from level to level: ``kdcache.methods.recurrent`` and ``early_baselines``."""

    def step(self, x_n: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x_n ``[B, d]`` → logits ``[B, C]`` and the new state."""
        ...


def predict(
    run: Run | StrPath,
    source: StrPath,
    *,
    skeleton: StrPath | None = None,
    start: float | None = None,
    stop: float | None = None,
    which: str = "last",
    weights: StrPath | Mapping[str, StrPath] | None = None,
    fps: float | None = None,
    device: str | None = None,
) -> Iterator[Prediction]:
    """Class probabilities of a clip of a source, whether or not the run's cache holds it.

    They are those of ``Run.predict`` on the same clip in the cache, up to the rounding of the arithmetic. A run of
    ``early`` answers at each observation level, before anything that follows its part is decoded; the length of the
    clip is taken from the file: observation ratios are shares of it. A run of any other method answers once. Only what
    its network reads is computed from the source, as extraction would: privileged inputs are not.

    Args:
        run: a finished run or its folder; its cache must be there.
        source: video, folder or tar of images, or skeleton file: what the run's clips were cut from.
        skeleton: skeleton file of the same clip, for a run on videos and skeletons together.
        start, stop: the clip's span in seconds of the source, half-open; default: all of it.
        which: ``last`` or ``best`` weights of the run.
        weights: backbone → file or ``random:SEED``, or one for all; default: found by the digest in the run's recipes.
        fps: frame rate of a folder or tar of images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; default: as the run's settings say.

    Raises:
        OptionError: a run that has not finished, one of early recognition's teacher, or one on imported streams.
        WeightsError: the backbone's weights are not here, or are others.
        SourceError, ClipError: while iterating, a source that cannot be read or has no such span.
    """
    from kdcache.runs.online.whole import whole
    from kdcache.runs.run import Run

    opened = run if isinstance(run, Run) else Run(Path(run))
    if device is not None:
        opened = opened.on(device)
    span = (skeleton, start, stop, fps)
    unfolds = opened.settings.method == "early"
    return (_unfolding if unfolds else whole)(opened, Path(source), span, which, weights)


def _unfolding(run: Run, source: Path, span: Span, which: str, weights: Any) -> Iterator[Prediction]:
    """The answers of a run of ``early`` while a clip unfolds."""
    if run.options.model == "teacher":
        raise OptionError(f"{run.path} is a teacher, which needs the whole clip: use a run of a model that looks back.")
    recipes = recipes_of(run)
    chosen = find_weights(recipes, weights, run.settings.weights)
    streams = [restore(name, recipe, chosen[name]) for name, recipe in recipes.items()]
    clips = spans_of(streams, source, *span)
    network = cast(Stepping, run.network(which))
    on = str(run.training_data.data.device)
    return _answers(run, network, [stream_features(s, c, on) for s, c in zip(streams, clips, strict=True)])


def _answers(run: Run, network: Stepping, parts: Sequence[Iterator[StreamingFeature]]) -> Iterator[Prediction]:
    """Step by step through the levels of the joined streams."""
    import torch

    data = run.training_data.data
    classes = tuple(data.classes[run.target])
    names = class_names(run, classes)
    observed = percent(data.inputs["x"].shape[0])
    state = None
    for level, seen in enumerate(zip(*parts, strict=True)):
        x = np.concatenate([part.features.astype(np.float32) for part in seen])
        with torch.no_grad(), data.autocast():
            scores, state = network.step(torch.from_numpy(x)[None].to(data.device), state)
        probabilities = torch.softmax(scores[0].float(), -1).cpu().numpy()
        yield Prediction(level + 1, observed[level], seen[0].seconds, probabilities, classes, names)
