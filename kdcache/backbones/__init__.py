"""Frozen backbones: which there are, what each takes, how to build one and run it fast.

    >>> from kdcache import backbones
    >>> net = backbones.build("i3d-rgb", weights="rgb_imagenet.pt")      # or weights="random:0"
    >>> net.features(x, "mixed4a").shape                                  # x: float [B, 3, 32, 224, 224]
    >>> extract = backbones.frozen(net, "mixed4a", precision="bf16")      # uint8 [B, T, H, W, C] → float32 map

Names, input specs, layer shapes and weights' digests are answered without importing torch, so planning stays quick.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kdcache.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.backbones.base import Backbone

Weights = str | os.PathLike[str] | None
Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputSpec:
    """What a backbone takes: ``frames`` × ``size`` × ``size`` crops of video whose short side is ``resize``.

    ``stack`` consecutive flow fields make up one of the ``frames`` of a flow network.
    """

    modality: Literal["rgb", "flow", "skeleton"]
    frames: int = 32
    size: int = 224
    resize: int = 256
    default_layer: str = "pool"
    stack: int = 1

    @property
    def channels(self) -> int:
        """Channels of the ``uint8 [B, T, H, W, C]`` batches: 3 for RGB and skeletons, x and y of each flow field."""
        return 2 * self.stack if self.modality == "flow" else 3


@dataclass(frozen=True)
class _Entry:
    module: str  # kdcache.backbones.<module> defines make(input, num_classes), <module>_layers the rest without torch
    input: InputSpec
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of make


_MARS: dict[str, Any] = {"frames": 16, "size": 112, "resize": 112}
REGISTRY = {
    "i3d-rgb": _Entry("i3d", InputSpec("rgb", default_layer="mixed4a")),
    "i3d-flow": _Entry("i3d", InputSpec("flow", default_layer="mixed4a")),
    "tsm-resnet50": _Entry("tsm", InputSpec("rgb", frames=8, default_layer="clip")),
    "tsm-resnet50-online": _Entry("tsm", InputSpec("rgb", frames=8, default_layer="clip"), {"online": True}),
    "vacnn": _Entry("vacnn", InputSpec("skeleton", frames=10, resize=224)),
    "resnet34": _Entry("resnet", InputSpec("rgb", frames=20, default_layer="layer4")),
    "resnet34-flow": _Entry("resnet", InputSpec("flow", frames=20, default_layer="layer4", stack=3)),
    "resnet34-flow5": _Entry("resnet", InputSpec("flow", frames=20, default_layer="layer4", stack=5)),
    "resnext101": _Entry("resnext3d", InputSpec("rgb", **_MARS)),
    "resnext101-flow": _Entry("resnext3d", InputSpec("flow", **_MARS)),
}
ALIASES = {"tsm": "tsm-resnet50"}


def names() -> list[str]:
    """Every backbone that ``build`` knows."""
    return list(REGISTRY)


def canonical(name: str) -> str:
    """The name behind an alias (``tsm``), as recipes have it; any other name is returned as it is."""
    return ALIASES.get(name, name)


def _entry(name: str) -> _Entry:
    if canonical(name) not in REGISTRY:
        raise unknown("backbone", name, [*names(), *ALIASES])
    return REGISTRY[canonical(name)]


def input_spec(name: str) -> InputSpec:
    """Modality and standard size of what backbone ``name`` takes."""
    return _entry(name).input


def layer_shape(name: str, layer: str, frames: int | None = None, size: int | None = None) -> tuple[str, Shape]:
    """Published name of ``layer`` (or of its alias) and its shape for one ``frames`` × ``size`` × ``size`` input.

    Raises ``OptionError`` for an unknown backbone or layer, and for an input too short for the layer.
    """
    entry = _entry(name)
    spec = entry.input
    layers = importlib.import_module(f"kdcache.backbones.{entry.module}_layers")
    published: str = layers.resolve(layer)
    shape: Shape = layers.shape(published, spec.channels, frames=frames or spec.frames, size=size or spec.size)
    return published, shape


def layer_axes(name: str, layer: str) -> str:
    """Axes of ``layer`` for one input, one letter for each dimension of ``layer_shape``.

    N levels of progress, T time steps, C channels, H rows, W columns, D numbers of a vector (class scores too): I3D's
    ``mixed4a`` is ``CTHW``, ResNet-34's ``layer3`` ``TCHW``. Raises ``OptionError`` for an unknown backbone or layer.
    """
    axes: str = importlib.import_module(f"kdcache.backbones.{_entry(name).module}_layers").axes(layer)
    return axes


def weights_id(name: str, weights: Weights = None) -> dict[str, Any]:
    """What a recipe says of the weights that ``build`` would load; the whole file is hashed, nothing is opened."""
    from kdcache.backbones.weights import resolve

    _entry(name)
    return resolve(canonical(name), weights).identity()


def build(name: str, weights: Weights = None, num_classes: int | None = None) -> Backbone:
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

    entry = _entry(name)
    make = importlib.import_module(f"kdcache.backbones.{entry.module}").make
    return load(canonical(name), lambda classes: make(entry.input, classes, **entry.options), weights, num_classes)


def frozen(net: Backbone, layer: str, precision: str = "fp32", device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """``net`` up to ``layer`` as a fast pure function; see ``kdcache.backbones.freeze.Frozen``."""
    from kdcache.backbones.freeze import Frozen

    return Frozen(net, layer, precision, device)
