"""timm's networks of images, seen frame by frame: ``timm:vit_base_patch14_dinov2.lvd142m``; extra ``[timm]``.

Crop, normalisation and short side are those of the network's own configuration; the classifier is left out, so
``output`` is the pooled feature of a frame as timm computes it. Vision transformers take other ``--size`` than
their own, their position embeddings interpolated by timm. 8 frames a segment unless said otherwise [reconstructed].
"""

from __future__ import annotations

import functools
import re
from typing import Any

from torch import nn

from kdcache.backbones.external import PRETRAINED, External
from kdcache.backbones.spec import InputSpec
from kdcache.errors import OptionError

FRAMES = 8
_BLOCKS = re.compile(r"(stages|layers|blocks|features|layer\d+)([._](blocks\.)?\d+)*")


def external(name: str) -> External:
    """The network ``timm:name``; ``OptionError`` where timm is not installed or does not know it."""
    try:
        import timm
    except ImportError as error:
        raise OptionError(f"timm:{name} needs timm: pip install 'kdcache[timm]'.") from error
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()."
        raise OptionError(f"Unknown timm network {name!r}: {hint}")

    def make(origin: str) -> nn.Module:
        made: nn.Module = timm.create_model(
            name, pretrained=origin.startswith(PRETRAINED), num_classes=0, **_any_size(name)
        )
        return made.eval()

    import torch

    with torch.device("meta"):
        net: Any = make("random")
    known = timm.data.resolve_model_data_config(net)
    size = known["input_size"][-1]
    return External(
        name=f"timm:{name}",
        library="timm",
        version=timm.__version__,
        takes="CHW",
        input=InputSpec("rgb", frames=FRAMES, size=size, resize=max(size, int(size / known["crop_pct"]))),
        mean=tuple(known["mean"]),
        std=tuple(known["std"]),
        make=make,
        axes=functools.partial(_axes, getattr(net, "output_fmt", "NCHW")),
        ignored=_classifiers(net),
    )


def _any_size(name: str) -> dict[str, bool]:
    """Vision transformers take any size that their patches divide."""
    import timm

    module = timm.models.model_entrypoint(name.partition(".")[0]).__module__
    return {"dynamic_img_size": True} if module.rpartition(".")[2] in ("vision_transformer", "eva") else {}


def _classifiers(net: Any) -> tuple[str, ...]:
    """What a checkpoint's classifier is called."""
    found = net.pretrained_cfg.get("classifier") or ()
    return tuple(f"{each}." for each in ([found] if isinstance(found, str) else found))


def _axes(form: str, layer: str, dimensions: int) -> str | None:
    """Tokens, vectors, and maps in the form that timm states, of stages and blocks."""
    if dimensions == 3 and _BLOCKS.fullmatch(layer):
        return "HWC" if form == "NHWC" else "CHW"
    return {1: "D", 2: "PD"}.get(dimensions)
