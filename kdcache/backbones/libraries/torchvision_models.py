"""torchvision's classifiers of videos and of images: ``torchvision:swin3d_t``, ``torchvision:resnet50``.

Crop, normalisation and short side are those of the transforms that belong to the default weights. torchvision resizes
some videos to 128 × 171; here the short side becomes 128 and the aspect stays. Frames of a segment are those with
which torchvision states its accuracy; networks of images take 8 unless said otherwise [reconstructed].
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torchvision
from torch import nn
from torchvision import models

from kdcache.backbones.external import PRETRAINED, External
from kdcache.backbones.spec import InputSpec
from kdcache.errors import unknown

FRAMES = {
    "r3d_18": 16,
    "mc3_18": 16,
    "r2plus1d_18": 16,
    "s3d": 128,
    "mvit_v1_b": 16,
    "mvit_v2_s": 16,
    "swin3d_t": 32,
    "swin3d_s": 32,
    "swin3d_b": 32,
}
"""Video network → frames of its segments, the ``clip_len`` of its weights' documentation."""
IMAGE_FRAMES = 8

# What is pooled, by the network's class: its last features before the classifier.
_POOLED = {
    "VideoResNet": "layer4",
    "S3D": "features",
    "MViT": "norm",
    "SwinTransformer3d": "norm",
    "ResNet": "layer4",
    "VisionTransformer": "encoder.ln",
    "SwinTransformer": "norm",
    "ConvNeXt": "features",
    "EfficientNet": "features",
    "RegNet": "trunk_output",
    "MobileNetV3": "features",
    "DenseNet": "features",
    "VGG": "features",
}
_TOKENS = {"MViT", "VisionTransformer"}
_CHANNELS_LAST = {"SwinTransformer3d", "SwinTransformer"}
_MAPS_IN = {  # modules of the others that give maps with channels first
    "MViT": ("conv_proj",),
    "VisionTransformer": ("conv_proj",),
    "SwinTransformer3d": ("patch_embed.proj", "avgpool"),
    "SwinTransformer": ("features.0.0", "permute", "avgpool"),
    "ConvNeXt": ("avgpool",),
}
_CONVOLUTIONS = {"VideoResNet", "S3D", "ResNet", "EfficientNet", "RegNet", "MobileNetV3", "DenseNet", "VGG"}
_STAGE = re.compile(r"features(\.\d+){0,2}")  # of ConvNeXt, whose blocks permute inside


def names() -> list[str]:
    """Every network here."""
    return [*FRAMES, *_image_names()]


@functools.cache
def _image_names() -> list[str]:
    return [n for n in models.list_models(module=models) if _kind(n) in _POOLED]


@functools.cache
def _kind(name: str) -> str:
    """The class that a builder makes, by its annotation."""
    made = models.get_model_builder(name).__annotations__.get("return", "")
    return str(getattr(made, "__name__", made)).rpartition(".")[2]


def external(name: str) -> External:
    """The network ``torchvision:name``, with its default weights or ``name.TAG``, those of that name.

    Raises:
        OptionError: one that is not here.
    """
    network, dot, tag = name.partition(".")
    if network not in names():
        raise unknown("torchvision network", network, names())
    weights = models.get_model_weights(network)
    if dot and tag not in weights.__members__:
        raise unknown(f"weights of {network}:", tag, list(weights.__members__))
    chosen = weights[tag or "DEFAULT"]
    shown: Any = chosen.transforms()
    size, resize = shown.crop_size[0], min(shown.resize_size)
    video, kind = network in FRAMES, _kind(network)
    sized = {"image_size": size} if kind == "VisionTransformer" else {}

    def make(origin: str) -> nn.Module:
        net: nn.Module = models.get_model(network, weights=chosen if origin == PRETRAINED else None, **sized)
        return net.eval()

    return External(
        name=f"torchvision:{name}",
        library="torchvision",
        version=torchvision.__version__.partition("+")[0],
        takes="CTHW" if video else "CHW",
        input=InputSpec("rgb", frames=FRAMES.get(network, IMAGE_FRAMES), size=size, resize=max(resize, size)),
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        make=make,
        axes=functools.partial(_axes, kind, video),
        pooled=_POOLED[kind],
    )


def _axes(kind: str, video: bool, layer: str, dimensions: int) -> str | None:
    """Axes by the way each kind of network computes; None where that differs from module to module."""
    maps, last = ("CTHW", "THWC") if video else ("CHW", "HWC")
    if dimensions == 1:
        return "D"
    if kind in _TOKENS and dimensions == 2:
        return "PD"
    if dimensions != len(maps):
        return None
    if kind in _CONVOLUTIONS or layer in _MAPS_IN.get(kind, ()):
        return maps
    if kind == "ConvNeXt" and _STAGE.fullmatch(layer):
        return maps
    return last if kind in _CHANNELS_LAST else None
