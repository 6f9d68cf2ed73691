"""Which backbones there are, what each takes, and how to build one and run it fast; torch loads when one is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdcache.backbones.custom import LIBRARIES, Builder, add, external, is_external, registered
from kdcache.backbones.spec import InputSpec, Shape, Weights
from kdcache.backbones.weights import resolve
from kdcache.errors import OptionError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from kdcache.backbones.base import Backbone
    from kdcache.backbones.freeze import FrozenLayers
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
    "vacnn-small": BackboneEntry("vacnn_small", InputSpec("skeleton", frames=10, resize=224)),
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
    """Every backbone of this package, and those that were registered.

    ``build`` also knows ``torchvision:…``, ``timm:…``, ``hf:…`` and ``my_package.nets:build``; see
    ``kdcache.backbones.custom``.
    """
    return [*REGISTRY, *registered()]


def canonical(name: str) -> str:
    """The name behind an alias (``tsm``), as recipes have it; any other name is returned as it is."""
    return ALIASES.get(name, name)


def entry(name: str) -> BackboneEntry:
    if canonical(name) not in REGISTRY:
        others = (*(f"{prefix}:…" for prefix in LIBRARIES), "module:function")
        raise unknown("backbone", name, [*names(), *ALIASES, *others])
    return REGISTRY[canonical(name)]


def register(name: str, build: Builder) -> None:
    """Make a network available in this process and its workers as ``--stream NAME/LAYER``; again replaces it.

    Args:
        name: letters, digits, ``_``, ``-``, ``.``.
        build: called without arguments, perhaps several times and in each worker; gives the same weights each time.

    Raises:
        OptionError: the name is taken by a network of this package, or is no name.
    """
    if name in REGISTRY or name in ALIASES:
        raise OptionError(f"{name} is a network of kdcache: register yours under another name.")
    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or not name.isascii():
        raise OptionError(f"{name!r} is no name of a network: use letters, digits, _, - and . alone.")
    add(name, build)


def input_spec(name: str) -> InputSpec:
    """Modality and standard size of what backbone ``name`` takes."""
    return external(name).input if is_external(name) else entry(name).input


def layer_shape(
    name: str, layer: str, frames: int | None = None, size: int | None = None, classes: int | None = None
) -> tuple[str, Shape]:
    """Published name of ``layer`` (or of its alias) and its shape for one ``frames`` × ``size`` × ``size`` input.

    ``classes`` is the number of class scores; None: that of the published network.

    Raises ``OptionError`` for an unknown backbone or layer, and for an input too short for the layer.
    """
    if is_external(name):
        from kdcache.backbones.external import layer_shape as shape_of

        return layer, shape_of(external(name), layer, frames, size, classes)
    found = entry(name)
    spec = found.input
    layers = importlib.import_module(f"kdcache.backbones.{found.module}_layers")
    published: str = layers.resolve(layer)
    given = {} if classes is None else {"num_classes": classes}
    shape: Shape = layers.shape(published, spec.channels, frames or spec.frames, size or spec.size, **given)
    return published, shape


def layer_names(name: str) -> list[str]:
    """The layers of a backbone that can be cached, in the order of computation.

    Raises:
        OptionError: an unknown backbone.
    """
    if is_external(name):
        from kdcache.backbones.external import layer_names as names_of

        return names_of(external(name))
    return list(importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers").ORDER)


def layer_axes(
    name: str, layer: str, stated: str | None = None, frames: int | None = None, size: int | None = None
) -> str:
    """Axes of ``layer`` for one input, one letter for each dimension of ``layer_shape``.

    N levels of progress, T time steps, C channels, H rows, W columns, D numbers of a vector (class scores too): I3D's
    ``mixed4a`` is ``CTHW``, ResNet-34's ``layer3`` ``TCHW``. P are positions without an order, the tokens of
    transformers.

    Args:
        name: of the backbone.
        layer: of it.
        stated: what a user says of a network from elsewhere; None: what is known of it.
        frames, size: of a segment; none: the backbone's own.

    Raises:
        OptionError: an unknown backbone or layer, axes that are not known, or stated ones that do not fit.
    """
    if is_external(name):
        from kdcache.backbones.external import layer_axes as axes_of

        return axes_of(external(name), layer, stated, frames, size)
    if stated is not None:
        raise OptionError(f"axes={stated}: those of {name}/{layer} are known; leave axes out.")
    axes: str = importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers").axes(layer)
    return axes


def short_names(name: str) -> dict[str, str]:
    """Layers of a backbone that have a shorter name, and that name: ``MaxPool3d_4a_3x3`` is also ``mixed4a``."""
    if canonical(name) not in REGISTRY:
        return {}
    layers = importlib.import_module(f"kdcache.backbones.{entry(name).module}_layers")
    return {published: alias for alias, published in getattr(layers, "ALIASES", {}).items()}


def weights_id(name: str, weights: Weights = None) -> dict[str, Any]:
    """What a recipe says of the weights that ``build`` would load; the whole file is hashed, nothing is opened."""
    return choose(name, weights).identity()


def choose(name: str, weights: Weights | Choice = None) -> Choice:
    """The weights that ``weights`` means for backbone ``name``; a choice that was made before stays.

    See ``kdcache.backbones.weights.resolve``, and for networks from elsewhere, which are loaded to know their digest,
    ``kdcache.backbones.external_weights.choose``.
    """
    if not is_external(name):
        entry(name)
        return resolve(canonical(name), weights)
    from kdcache.backbones.external_weights import choose as choose_external

    return choose_external(name, weights)


def build(name: str, weights: Weights | Choice = None, num_classes: int | None = None) -> Backbone:
    """Backbone ``name`` with its weights, in evaluation mode, on the CPU in float32.

    Args:
        name: one of ``names()`` or of ``ALIASES``, or a network from elsewhere such as ``torchvision:s3d``.
        weights: a checkpoint file as published, ``"random:SEED"``, or None for the published one found by
            ``kdcache.backbones.weights.find`` (of networks from elsewhere: the library's, or the builder's).
        num_classes: width of the classifier; default: the checkpoint's, or the published network's for random weights.
            A different number gives a new, randomly drawn classifier behind the loaded layers.

    Raises:
        OptionError: unknown backbone, or a malformed ``random:`` spec.
        WeightsError: no such checkpoint, or one of another network or shape.
    """
    if is_external(name):
        from kdcache.backbones.external_weights import build as build_external

        return build_external(name, weights, num_classes)
    from kdcache.backbones.checkpoint import load

    found = entry(name)
    make = importlib.import_module(f"kdcache.backbones.{found.module}").make
    return load(canonical(name), lambda classes: make(found.input, classes, **found.options), weights, num_classes)


def outline(name: str) -> Backbone:
    """Backbone ``name`` without weights, on the meta device: what it would compute can be counted at no cost.

    Its classifier is the published network's. Raises ``OptionError`` for an unknown backbone.
    """
    if is_external(name):
        from kdcache.backbones.external import outline as outline_of

        return outline_of(external(name)).to("meta")
    import torch

    found = entry(name)
    make = importlib.import_module(f"kdcache.backbones.{found.module}").make
    with torch.device("meta"):
        net: Backbone = make(found.input, None, **found.options)
    return net.eval()


def frozen_layers(
    net: Backbone, layers: Sequence[str], precision: str = "fp32", device: str = "cpu", compile: bool = False
) -> FrozenLayers:
    """``net`` up to several layers, of which one pass gives all; see ``kdcache.backbones.freeze.FrozenLayers``."""
    from kdcache.backbones.freeze import FrozenLayers

    return FrozenLayers(net, layers, precision, device, compile)


def frozen(net: Backbone, layer: str, precision: str = "fp32", device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """``net`` up to ``layer`` as a fast pure function; see ``kdcache.backbones.freeze.Frozen``."""
    from kdcache.backbones.freeze import Frozen

    return Frozen(net, layer, precision, device)
