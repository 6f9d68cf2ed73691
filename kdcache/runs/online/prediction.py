"""Early recognition of a source: class probabilities at each observation level, from what was seen by then."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from kdcache.errors import OptionError
from kdcache.manifest import SKELETON
from kdcache.metrics.early import percent
from kdcache.runs.online.recipes import find_weights, restore
from kdcache.runs.online.streaming import StreamingFeature, stream_features
from kdcache.store import Cache
from kdcache.streams.base import ClipSpan

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.runs.train import Run
    from kdcache.streams.base import Stream

StrPath = str | os.PathLike[str]


class Stepping(Protocol):
    """A network that goes from level to level: ``kdcache.methods.recurrent`` and ``early_baselines``."""

    def step(self, x_n: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """x_n ``[B, d]`` → logits ``[B, C]`` and the new state."""
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """Class probabilities at one observation level."""

    level: int
    """n, from 1."""
    observed: int
    """How much of the clip has been seen, in per cent."""
    seconds: float
    """Where part n ends, on the source's clock."""
    probabilities: NDArray[np.float32]
    """Of each class, ``[C]``."""
    classes: tuple[int, ...]
    """The manifest's label of each class."""
    names: tuple[str, ...]
    """The manifest's ``class`` of each, or its label where it has none."""

    def top(self, k: int = 3) -> list[tuple[str, float]]:
        """The k likeliest classes with their probabilities, the likeliest first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.names[c], float(self.probabilities[c])) for c in order]

    def line(self, k: int = 3) -> str:
        """The k likeliest classes as a line of a table."""
        shown = "  ".join(f"{name} {probability:.2f}" for name, probability in self.top(k))
        return f"{self.observed:3d} %  {self.seconds:7.2f} s  {shown}"

    def __str__(self) -> str:
        return self.line()


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
    """Recognise a clip while it is watched: class probabilities at each observation level.

    Each is yielded before anything that follows its part is decoded. They are those of ``Run.predict`` on the same clip
    in the cache, up to the rounding of the arithmetic. The length of the clip is taken from the file: observation
    ratios are shares of it.

    Args:
        run: a finished run of the method ``early`` or its folder; its cache must be there.
        source: video, folder or tar of images, or skeleton file: what the run's clips were cut from.
        skeleton: skeleton file of the same clip, for a run on videos and skeletons together.
        start, stop: the clip's span in seconds of the source, half-open; default: all of it.
        which: ``last`` or ``best`` weights of the run.
        weights: backbone → file or ``random:SEED``, or one for all; default: found by the digest in the run's recipes.
        fps: frame rate of a folder or tar of images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; default: as the run's settings say.

    Raises:
        OptionError: a run of another method, one that has not finished or cannot go step by step.
        WeightsError: the backbone's weights are not here, or are others.
        SourceError, ClipError: while iterating, a source that cannot be read or has no such span.
    """
    from kdcache.runs.run import Run

    opened = run if isinstance(run, Run) else Run(Path(run))
    if opened.settings.method != "early":
        raise OptionError(
            f"{opened.path} is a run of {opened.settings.method}: only those of early answer while a clip unfolds."
        )
    if opened.options.model == "teacher":
        raise OptionError(
            f"{opened.path} is a teacher, which needs the whole clip: use a run of a model that looks back."
        )
    recipes = _recipes(opened)
    chosen = find_weights(recipes, weights, opened.settings.weights)
    streams = [restore(name, recipe, chosen[name]) for name, recipe in recipes.items()]
    clips = _clips(streams, Path(source), skeleton, (start, stop), fps)
    if device is not None:
        opened = opened.on(device)
    network = cast(Stepping, opened.network(which))
    on = str(opened.training_data.data.device)
    return _answers(opened, network, [stream_features(s, c, on) for s, c in zip(streams, clips, strict=True)])


def _clips(
    streams: Sequence[Stream],
    source: Path,
    skeleton: StrPath | None,
    span: tuple[float | None, float | None],
    fps: float | None,
) -> list[ClipSpan]:
    """What each stream reads."""
    skeletons = [s.column == SKELETON for s in streams]
    if skeleton is None and any(skeletons) and not all(skeletons):
        raise OptionError(
            "This run reads videos and skeletons: give the clip's skeleton file as well (--skeleton FILE)."
        )
    if skeleton is not None and not any(skeletons):
        raise OptionError(f"skeleton={skeleton}: this run reads no skeletons; leave it out.")
    named = {SKELETON: Path(skeleton)} if skeleton is not None else {}
    start, stop = (math.nan if t is None else t for t in span)
    return [ClipSpan(named.get(s.column, source), start, stop, fps) for s in streams]


def _answers(run: Run, network: Stepping, parts: Sequence[Iterator[StreamingFeature]]) -> Iterator[Prediction]:
    """Step by step through the levels of the joined streams."""
    import torch

    data = run.training_data.data
    classes = tuple(data.classes[run.target])
    names = _names(run, classes)
    observed = percent(data.inputs["x"].shape[0])
    state = None
    for level, seen in enumerate(zip(*parts, strict=True)):
        x = np.concatenate([part.features.astype(np.float32) for part in seen])
        with torch.no_grad(), data.autocast():
            scores, state = network.step(torch.from_numpy(x)[None].to(data.device), state)
        probabilities = torch.softmax(scores[0].float(), -1).cpu().numpy()
        yield Prediction(level + 1, observed[level], seen[0].seconds, probabilities, classes, names)


def _recipes(run: Run) -> dict[str, dict[str, Any]]:
    """Of each stream, in the order in which they are joined."""
    path = run.path / "recipes.json"
    if not path.exists():
        raise OptionError(f"{run.path} has not been trained: repeat its command with this out.")
    kept = json.loads(path.read_text())
    return {name: kept[name]["recipe"] for name in run.resolved["stream"].split(",")}


def _names(run: Run, classes: Sequence[int]) -> tuple[str, ...]:
    """The names that the cache's ``class`` column has for the labels; the label itself where there is not one."""
    names: dict[int, str] = {}
    assert run.settings.shards is not None
    rows = Cache(run.settings.shards).clips
    if run.target == "label" and "class" in rows:
        known = rows[rows["label"].notna() & rows["class"].notna() & (rows["class"] != "")]
        for label, found in known.groupby("label")["class"].unique().items():
            if len(found) == 1:
                names[int(cast(int, label))] = str(found[0])
    return tuple(names.get(c, str(c)) for c in classes)
