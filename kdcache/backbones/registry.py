"""Which backbones there are, what each takes, and how to build one and run it fast; torch loads when one is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdcache.backbones.spec import InputSpec, Shape, Weights
from kdcache.backbones.weights import resolve
from kdcache.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.backbones.base import Backbone
    from kdcache.backbones.weights import Choice


@dataclass(frozen=True)
class BackboneEntry:
    module: str  # kdcache.backbones.<module> defines make(input, num_classes), <module>_layers the rest without torch
    input: InputSpec
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of make


_MARS: dict[str, Any] = {"frames": 16, "size": 112, "resize": 112}
REGISTRY = {
    "i3d-rgb": BackboneEntry("i3d", InputSpec("rgb", default_layer="mixed4a")),
    "i3d-flow": BackboneEntry("i3d", InputSpec("flow", default_layer="mixed4a")),
    "tsm-resnet50": BackboneEntry("tsm", InputSpec("rgb", frames=8, default_layer="clip")),
    "tsm-resnet50-online": BackboneEntry("tsm", InputSpec("rgb", frames=8, default_layer="clip"), {"online": True}),
    "vacnn": BackboneEntry("vacnn", InputSpec("skeleton", frames=10, resize=224)),
    "resnet34": BackboneEntry("resnet", InputSpec("rgb", frames=20, default_layer="layer4")),
    "resnet34-flow": BackboneEntry("resnet", InputSpec("flow", frames=20, default_layer="layer4", stack=3)),
    "resnet34-flow5": BackboneEntry("resnet", InputSpec("flow", frames=20, default_layer="layer4", stack=5)),
    "egornn": BackboneEntry("egornn", InputSpec("rgb", frames=25, default_layer="descriptor")),
    "egornn-joint": BackboneEntry(
        "egornn", InputSpec("rgb+flow", frames=25, default_layer="descriptor", stack=5), {"joint": True}
    ),
    "resnext101": BackboneEntry("resnext3d", InputSpec("rgb", **_MARS)),
    "resnext101-flow": BackboneEntry("resnext3d", InputSpec("flow", **_MARS)),
}
ALIASES = {"tsm": "tsm-resnet50"}


def names() -> list[str]:
    """Every backbone that ``build`` knows."""
    return list(REGISTRY)


def canonical(name: str) -> str:
    """The name behind an alias (``tsm``), as recipes have it; any other name is returned as it is."""
    return ALIASES.get(name, name)


def entry(name: str) -> BackboneEntry:
    if canonical(name) not in REGISTRY:
        raise unknown("backbone", name, [*names(), *ALIASES])
    return REGISTRY[canonical(name)]


def input_spec(name: str) -> InputSpec:
    """Modality and standard size of what backbone ``name`` takes."""
    return entry(name).input


def layer_shape(name: str, layer: str, frames: int | None = None, size: int | None = None) -> tuple[str, Shape]:
    """Published name of ``layer`` (or of its alias) and its shape for one ``frames`` × ``size`` × ``size`` input.

    Raises ``OptionError`` for an unknown backbone or layer, and for an input too short for the layer.
    """
    found = entry(name)
    spec = found.input
    layers = importlib.import_module(f"kdcache.backbones.{found.module}_layers")
    published: str = layers.resolve(layer)
    shape: Shape = layers.shape(published, spec.channels, frames=frames or spec.frames, size=size or spec.size)
    return published, shape


def layer_axes(name: str, layer: str) -> str:
    """Axes of ``layer`` for one input, one letter for each dimension of ``layer_shape``.

    N levels of progress, T time steps, C channels, H rows, W columns, D numbers of a vector (class scores too): I3D's
    ``mixed4a`` is ``CTHW``, ResNet-34's ``layer3`` ``TCHW``. Raises ``OptionError`` for an unknown backbone or layer.
    """
    axes: str = importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers").axes(layer)
    return axes


def layer_names(name: str) -> list[str]:
    """The layers of a backbone that can be cached, in the order of computation.

    Raises:
        OptionError: an unknown backbone.
    """
    return list(importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers").ORDER)


def short_names(name: str) -> dict[str, str]:
    """Layers of a backbone that have a shorter name, and that name: ``MaxPool3d_4a_3x3`` is also ``mixed4a``."""
    if canonical(name) not in REGISTRY:
        return {}
    layers = importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers")
    return {published: alias for alias, published in getattr(layers, "ALIASES", {}).items()}


def weights_id(name: str, weights: Weights = None) -> dict[str, Any]:
    """What a recipe says of the weights that ``build`` would load; the whole file is hashed, nothing is opened."""
    entry(name)
    return resolve(canonical(name), weights).identity()


def build(name: str, weights: Weights | Choice = None, num_classes: int | None = None) -> Backbone:
    """Backbone ``name`` with its weights, in evaluation mode, on the CPU in float32.

    Args:
        name: one of ``names()`` or of ``ALIASES``.
        weights: a checkpoint file as published, ``"random:SEED"``, or None for the published one found by
            ``kdcache.backbones.weights.find``.
        num_classes: width of the classifier; default: the checkpoint's, or the published network's for random weights.
            A different number gives a new, randomly drawn classifier behind the loaded layers.

    Raises:
        OptionError: unknown backbone, or a malformed ``random:`` spec.
        WeightsError: no such checkpoint, or one of another network or shape.
    """
    from kdcache.backbones.checkpoint import load

    found = entry(name)
    make = importlib.import_module(f"kdcache.backbones.{found.module}").make
    return load(canonical(name), lambda classes: make(found.input, classes, **found.options), weights, num_classes)


def outline(name: str) -> Backbone:
    """Backbone ``name`` without weights, on the meta device: what it would compute can be counted at no cost.

    Its classifier is the published network's. Raises ``OptionError`` for an unknown backbone.
    """
    import torch

    found = entry(name)
    make = importlib.import_module(f"kdcache.backbones.{found.module}").make
    with torch.device("meta"):
        net: Backbone = make(found.input, None, **found.options)
    return net.eval()


def frozen(net: Backbone, layer: str, precision: str = "fp32", device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """``net`` up to ``layer`` as a fast pure function; see ``kdcache.backbones.freeze.Frozen``."""
    from kdcache.backbones.freeze import Frozen

    return Frozen(net, layer, precision, device)
