"""Frozen backbones: which there are, what each takes, how to build one and run it fast.

    >>> from kdcache import backbones
    >>> net = backbones.build("i3d-rgb", weights="rgb_imagenet.pt")      # or weights="random:0"
    >>> net.features(x, "mixed4a").shape                                  # x: float [B, 3, 32, 224, 224]
    >>> extract = backbones.frozen(net, "mixed4a", precision="bf16")      # uint8 [B, T, H, W, C] → float32 map

Names, input specs, layer shapes and weights' digests are answered without importing torch, so planning stays quick.
"""

from __future__ import annotations

from kdcache.backbones.custom import Custom, allow, is_external
from kdcache.backbones.registry import (
    ALIASES,
    REGISTRY,
    BackboneEntry,
    build,
    canonical,
    choose,
    entry,
    frozen,
    frozen_layers,
    input_spec,
    layer_axes,
    layer_names,
    layer_shape,
    names,
    outline,
    register,
    short_names,
    weights_id,
)
from kdcache.backbones.spec import InputSpec, Shape, Weights

__all__ = [
    "ALIASES",
    "REGISTRY",
    "BackboneEntry",
    "Custom",
    "InputSpec",
    "Shape",
    "Weights",
    "allow",
    "build",
    "canonical",
    "choose",
    "entry",
    "frozen",
    "frozen_layers",
    "input_spec",
    "is_external",
    "layer_axes",
    "layer_names",
    "layer_shape",
    "names",
    "outline",
    "register",
    "short_names",
    "weights_id",
]
