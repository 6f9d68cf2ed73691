"""The output of one module inside any network, by its dotted name; nothing beyond it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdcache.errors import OptionError
from kdcache.log import logger

OUTPUT = "output"
"""The layer that is what the network itself returns."""

_OUT = "out"


class _Reached(Exception):
    """Ends a forward at the module that was asked for."""


class Tapped(nn.Module):
    """``net`` up to module ``layer``: what does not lead there is dropped, where the network can be traced.

    The extractor is torchvision's; a network whose Python code decides by the data cannot be traced, is kept whole and
    left as soon as the module has been run. Parameters keep their names in both.
    """

    def __init__(self, net: nn.Module, layer: str, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer, self.arguments = layer, arguments
        traced = _traced(net, layer) if layer != OUTPUT and not arguments else None
        self.is_traced = traced is not None
        self.net = net if traced is None else traced

    def forward(self, x: Tensor) -> Tensor:
        """Output of the layer for what the network takes."""
        if self.is_traced:
            return first_tensor(self.net(x)[_OUT], self.layer)
        return tap(self.net, self.layer, x, self.arguments)


def tap(net: nn.Module, layer: str, x: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Output of ``layer`` of a whole network; ``OptionError`` where the forward does not run that module."""
    if layer == OUTPUT:
        return first_tensor(net(x, **arguments), layer)
    found: list[Any] = []

    def reached(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output)
        raise _Reached

    handle = net.get_submodule(layer).register_forward_hook(reached)
    try:
        net(x, **arguments)
    except _Reached:
        return first_tensor(found[0], layer)
    finally:
        handle.remove()
    raise OptionError(f"Layer {layer!r} is not run in the forward of {type(net).__name__}: choose another.")


def first_tensor(output: Any, layer: str) -> Tensor:
    """A module's output, or the first tensor of it where it is several; ``OptionError`` where there is none."""
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if hasattr(output, "values") else list(output) if isinstance(output, tuple) else []
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise OptionError(f"Layer {layer!r} gives a {type(output).__name__}, no tensor: choose another.")


def _traced(net: nn.Module, layer: str) -> nn.Module | None:
    """torchvision's extractor, None for a network that cannot be traced."""
    from torch.fx.proxy import TraceError
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        extractor: nn.Module = create_feature_extractor(net, {layer: _OUT}, suppress_diff_warning=True)
    except (TraceError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        logger.debug("%s cannot be traced to %s (%s): it is run whole", type(net).__name__, layer, error)
        return None
    return extractor
