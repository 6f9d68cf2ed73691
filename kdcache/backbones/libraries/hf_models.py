"""Networks of videos and images by transformers: ``hf:MCG-NJU/videomae-base``; extra ``[hf]``.

Configuration, preprocessing and weights are read from the Hugging Face hub, or from a folder that ``save_pretrained``
wrote, named by its path from the working directory, as transformers takes it. Code from the hub is never run. Crop,
normalisation and short side are those of the network's own processor, frames of a segment those of its configuration.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcache.backbones.external import PRETRAINED, External, Takes
from kdcache.backbones.spec import InputSpec
from kdcache.errors import OptionError, WeightsError
from kdcache.recipe import digest

_SAFE: dict[str, Any] = {"trust_remote_code": False}
_NAMES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # of a configuration, which compute nothing
FRAMES = 8
"""Of networks that see images one by one. [reconstructed]"""


def external(name: str) -> External:
    """The network ``hf:name``.

    Raises:
        OptionError: transformers is not installed, or the network takes neither videos nor images.
        WeightsError: configuration or preprocessing cannot be had.
    """
    try:
        import transformers
    except ImportError as error:
        raise OptionError(f"hf:{name} needs transformers: pip install 'kdcache[hf]'.") from error
    transformers.utils.logging.disable_progress_bar()  # they would break lines of progress and logs
    local = name.count("/") != 1 or Path(name).parent.is_dir()  # the hub has OWNER/NAME
    if local and not Path(name).is_dir():
        raise WeightsError(f"hf:{name}: there is no folder {name} here, and networks of the hub are called OWNER/NAME.")
    config = _had(name, "configuration", lambda: transformers.AutoConfig.from_pretrained(name, **_SAFE))

    def make(origin: str) -> nn.Module:
        if not origin.startswith(PRETRAINED):
            made: nn.Module = transformers.AutoModel.from_config(config, **_SAFE)
        else:
            made = _had(name, "weights", lambda: _pretrained(name))
        return made.eval()

    with torch.device("meta"):
        net: Any = make("random")
    takes, frames = _takes(net, name)
    shown = _had(name, "preprocessing", lambda: _processor(name))
    size = _side(shown.crop_size) or _side(shown.size) or int(getattr(config, "image_size", 224))
    mean, std = _scaling(shown)
    arguments = {"skip_predictor": True} if "skip_predictor" in inspect.signature(net.forward).parameters else {}
    return External(
        name=f"hf:{name}",
        library="transformers",
        version=transformers.__version__,
        takes=takes,
        input=InputSpec("rgb", frames=frames, size=size, resize=max(size, _side(shown.size) or size)),
        mean=mean,
        std=std,
        make=make,
        axes=lambda layer, dimensions: {1: "D", 2: "PD"}.get(dimensions),
        arguments=arguments,
        configuration=digest(
            {k: v for k, v in json.loads(config.to_json_string(use_diff=False)).items() if k not in _NAMES}
        ),
    )


def _pretrained(name: str) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(name, dtype=torch.float32, **_SAFE)


def _scaling(shown: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for values from 0 to 1 that do what a processor's rescaling, offset and normalisation do."""
    factor = round(255 * float(shown.rescale_factor), 9) if shown.do_rescale else 255.0
    offset = 1.0 if shown.do_rescale and getattr(shown, "offset", False) else 0.0  # ViViT's: x × factor − 1
    mean = shown.image_mean if shown.do_normalize else (0.0, 0.0, 0.0)
    std = shown.image_std if shown.do_normalize else (1.0, 1.0, 1.0)
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)


def _takes(net: Any, name: str) -> tuple[Takes, int]:
    """Order of the axes, and frames of a segment; transformers' networks of videos take [B, T, C, H, W]."""
    config = net.config
    frames = next((int(n) for key in ("num_frames", "frames_per_clip") if (n := getattr(config, key, None))), None)
    if net.main_input_name not in ("pixel_values", "pixel_values_videos"):
        raise OptionError(f"hf:{name} takes {net.main_input_name}, neither videos nor images: choose another.")
    return ("CHW", FRAMES) if frames is None else ("TCHW", frames)


def _processor(name: str) -> Any:
    """What prepares inputs of the network; where there is none for videos, that for images."""
    import transformers

    try:
        return transformers.AutoVideoProcessor.from_pretrained(name, **_SAFE)
    except (OSError, ValueError, TypeError, KeyError):
        return transformers.AutoImageProcessor.from_pretrained(name, **_SAFE)


def _side(size: Any) -> int | None:
    """Pixels of the short side that a processor's ``size`` or ``crop_size`` means."""
    if size is None or isinstance(size, int):
        return size
    get = size.get if isinstance(size, Mapping) else functools.partial(getattr, size)
    return next((int(n) for key in ("shortest_edge", "height") if (n := get(key, None))), None)


def _had(name: str, what: str, get: Any) -> Any:
    """What the hub or a folder gives; ``WeightsError`` where it gives nothing."""
    try:
        return get()
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if what == "preprocessing" and Path(name).is_dir():
            raise WeightsError(
                f"hf:{name}: the folder holds no preprocessing (size, mean, std): save the network's processor there, "
                f"too, AutoVideoProcessor.from_pretrained(…).save_pretrained({name!r})."
            ) from error
        raise WeightsError(
            f"hf:{name}: its {what} cannot be had ({reason}); check the name and the network, or name a folder that "
            f"save_pretrained wrote, by its path from here: hf:FOLDER."
        ) from error
