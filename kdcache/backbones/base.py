"""What every backbone offers: named layers, the input it expects, and the identity of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.backbones.metadata import FitMetadata
from kdcache.backbones.spec import InputSpec, Shape
from kdcache.errors import OptionError

State = dict[str, Tensor]
"""Tensors by name, as checkpoints hold them."""


class Backbone(nn.Module):
    """A network that is run frozen. A subclass says what it takes, which layers it has, and computes up to one.

    Attributes:
        input: modality and standard size of what the network takes.
        weights_id: identity of the weights for recipes: ``{"sha256": 64 hex digits}`` or
            ``{"spec": "random:SEED", "rule": version of the drawing rule}``; set by ``build``.
        classifier: names of the parameters whose first dimension is the number of classes.
        folds: whether each batch norm is computed right after the convolution that is registered before it.
    """

    input: InputSpec
    weights_id: dict[str, Any]
    classifier: tuple[str, ...] = ()
    folds: bool = True

    @property
    def layers(self) -> dict[str, Shape]:
        """Every layer name, aliases too → shape of its output for one standard input (no batch dimension)."""
        raise NotImplementedError

    def resolve(self, layer: str) -> str:
        """The published name behind ``layer`` (a name or an alias); ``OptionError`` for an unknown one."""
        raise NotImplementedError

    def features(self, x: Tensor, layer: str) -> Tensor:
        """Output of ``layer`` for a prepared batch ``x``; nothing beyond that layer is computed."""
        raise NotImplementedError

    def several(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Output of each layer for a prepared batch, in one pass where there is a ``deepest`` of them."""
        return [self.features(x, layer) for layer in layers]

    def deepest(self, layers: Sequence[str]) -> str | None:
        """The layer on whose way the others lie, so that one pass gives all; ``None`` where there is none."""
        return layers[0] if len(set(layers)) == 1 else None

    def prepare(self, x: Tensor) -> Tensor:
        """Turn the ``uint8 [B, T, H, W, C]`` batch that extraction yields into the network's float input."""
        raise NotImplementedError

    def init_constant(self, name: str) -> float | None:
        """The constant that random weights give the parameter ``name``; None: the rule for all networks applies."""
        return None

    def truncate(self, layer: str) -> None:
        """Drop, in place, the modules that ``layer`` does not need."""
        raise NotImplementedError

    def adapt(self, state: State) -> State:
        """A checkpoint's tensors under this network's names and shapes; most networks need nothing.

        Called on what a file holds before anything is looked up in it; the network may be on the meta device.
        """
        return state

    def load_metadata(self, metadata: FitMetadata) -> None:
        """Set what a fitted weights file says of the network beside its parameters; most networks need nothing."""
        return


class Chain(Backbone):
    """A backbone whose layers come one after the other.

    Attributes:
        order: names of the layers as they are computed.
    """

    order: tuple[str, ...]

    def features(self, x: Tensor, layer: str) -> Tensor:
        """Output of ``layer`` for a prepared batch ``x``; nothing beyond that layer is computed.

        Raises ``OptionError`` for an unknown layer, or a batch of another shape or dtype than ``prepare`` gives.
        """
        return self.several(x, [layer])[0]

    def deepest(self, layers: Sequence[str]) -> str | None:
        """See ``Backbone``."""
        return max(map(self.resolve, layers), key=self.order.index)


def collected(endpoints: Iterator[tuple[str, Tensor]], wanted: Sequence[str]) -> list[Tensor]:
    """The outputs of some layers, in the order asked for; the endpoints behind the last of them are not computed."""
    found: dict[str, Tensor] = {}
    left = set(wanted)
    for name, output in endpoints:
        if name in left:
            left.remove(name)
            found[name] = output.clone() if left else output  # the next layer may write into its input
            if not left:
                break
    return [found[name] for name in wanted]


def scaled_video(x: Tensor, spec: InputSpec) -> Tensor:
    """``uint8 [B, T, H, W, C]`` → ``float32 [B, C, T, H, W]`` in [-1, 1] by ``2 x / 255 - 1``.

    The result keeps the order of the bytes (it is channels-last in memory), which is what convolutions run fastest on.
    """
    if x.dtype != torch.uint8 or x.ndim != 5 or x.shape[-1] != spec.channels:
        raise OptionError(
            f"This network takes {spec.modality} as uint8 [B, T, H, W, {spec.channels}]; got {x.dtype} {list(x.shape)}:"
            f" check the modality and the order of dimensions."
        )
    return x.permute(0, 4, 1, 2, 3).float().mul_(2 / 255).sub_(1)
