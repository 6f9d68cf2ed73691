"""What a method may show of a single clip: its papers' figures, which ``kdcache show --run`` draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kdcache.methods.contract import Batch, Data, Predictor


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Something of what a network sees in one clip, over time: a row of ``kdcache show --run``."""

    title: str
    values: Tensor
    """Maps ``[T, h, w]``, drawn as heat, or one number for each frame ``[T]``, drawn as a curve; float32."""
    in_time: bool = True
    """Off: the values do not follow the frames."""
    over: bool = False
    """Maps: laid over the frames that the network sees."""
    note: str = ""
    """In small print."""
    scale: tuple[float, float] | None = None
    """Of maps: values of the coldest and the hottest colour; none: the least and the largest of the maps. Maps that are
    compared share one. Of curves: the ends of the axis; none: 0 and the largest value."""


StageLoader = Callable[[str, nn.Module], nn.Module | None]
"""Name of a stage and a module of its form → the module with the weights that the stage handed on, evaluating; None,
with a warning, where the run has not kept them."""


class Explained(Protocol):
    """What the module of a method provides beside ``Method`` where its papers have figures of single clips."""

    def explain(self, options: Any, data: Data, predictor: Predictor, batch: Batch, load: StageLoader) -> list[Picture]:
        """Pictures of one clip, from top to bottom.

        Args:
            options: resolved.
            data: of the run.
            predictor: with the run's weights, in evaluation mode.
            batch: of this clip alone: ``predictor.inputs``, and privileged inputs where the cache has them.
            load: for networks of earlier stages, such as what was there before a branch was added.
        """
        ...
