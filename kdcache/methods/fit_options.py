"""How a backbone is fitted: options with the published recipe of each network as their default."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from kdcache.backbones import input_spec
from kdcache.backbones.weights import RANDOM
from kdcache.errors import OptionError
from kdcache.runs.config import build, parse_texts


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is fitted, on what, and where."""

    backbone: str
    """Name in ``kdcache.backbones.names()``."""
    manifest: str
    """CSV of clips; a copy in the fit's own folder where rows were given instead of a file."""
    root: str
    """Folder that sources are relative to."""
    seed: int = 0
    """Of the first weights, the order, the augmentations and dropout."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: str = "auto"
    """fp32, bf16 or fp16; ``auto``: fp32 on a CPU, bf16 on a GPU."""
    split: str = "split"
    """Column of the manifest that says which clips train, validate and test, where there are several such columns."""
    validation: float = 0.2
    """Share of the labelled training clips to hold out where the manifest has no validation split; 0: none."""
    decoder: Literal["auto", "decord", "pyav"] = "auto"
    """Which decoder reads videos; ``auto`` is a function of the file alone."""
    hold: float = 0.5
    """Share of the free memory that decoded frames may fill; clips beyond it are decoded again in every epoch."""
    save_every: float = 120.0
    """Seconds between checkpoints, taken at the end of an epoch; 0 takes one after every epoch."""

    def __post_init__(self) -> None:
        if not 0 <= self.hold <= 1:
            raise OptionError(f"hold={self.hold}: give a share of the free memory, 0 to 1.")
        if not 0 <= self.validation < 1:
            raise OptionError(f"validation={self.validation}: give a share of the training clips, 0 to below 1.")


SETTABLE = ("validation", "decoder", "hold", "save_every")
"""Settings that ``parse_set`` takes beside the options; without a dataset, ``split`` too."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that can be set; ``none`` stands for the recipe of the backbone, see ``RECIPES``."""

    target: Literal["auto", "label", "verb", "noun"] = "auto"
    """Which column holds the classes; ``auto``: label, or verb where there is no label."""
    label_fraction: float = 1.0
    """Share of the training labels that are used, the same for every class and at least one each."""
    label_seed: int = 0
    """Which labels these are; ``train early`` with the same seed and fraction keeps the same."""
    init: str | None = None
    """Checkpoint of this backbone to start from, with a new classifier, or ``random:SEED``; none: the published one,
    random weights where there is none."""
    imagenet: str | None = None
    """VA-CNN: checkpoint of an ImageNet ResNet-50 that its classifier starts from, as published; none: random."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are written: the best one on the validation clips, or the last."""

    optimizer: Literal["adam", "sgd"] | None = None
    """VA-CNN: Adam. Others: SGD."""
    lr: float | None = None
    """Learning rate; from random weights more than the published recipes have, which fine-tune [reconstructed]."""
    view_lr: float | None = None
    """VA-CNN: learning rate of the network that chooses the view; none: ``lr`` where the classifier starts from a
    checkpoint, as published, a thousandth of it from random weights [reconstructed]. 6,272 inputs move each angle:
    at a common rate, skeletons spin faster than a classifier that knows nothing yet can follow, and nothing is learned
    (after eight epochs on MSR Action3D the loss is still that of chance)."""
    momentum: float = 0.9
    """Momentum of SGD [TSM's code]."""
    weight_decay: float | None = None
    """Weight decay."""
    batch_size: int | None = None
    """Clips in a batch."""
    epochs: int | None = None
    """At most."""
    schedule: Literal["plateau", "steps"] | None = None
    """``plateau``: the rate falls when validation accuracy stops rising; ``steps``: after ``milestones``."""
    milestones: tuple[int, ...] | None = None
    """Epochs after which ``steps`` lowers the rate; an empty list never does."""
    gamma: float = 0.1
    """Factor by which it falls [VA-CNN's and TSM's code]."""
    plateau: int = 2
    """Epochs without a better one that ``plateau`` waits for, and waits again after each fall [VA-CNN's code]."""
    patience: int | None = None
    """Epochs without a better one on the validation clips after which fitting stops; 0: never."""
    grad_clip: float | None = None
    """Largest norm of the gradient; 0 does not clip."""
    dropout: float | None = None
    """On the pooled features, before the classifier. I3D has its own besides, of one half."""

    augmentations: int = 1000
    """Different augmented inputs of each clip, one of which is drawn in each epoch; 0: always the clip as it is.
    Skeletons: turned by three angles, each uniform in ±0.3 rad [VA-CNN's code]; 2-D joints in their plane alone.
    Videos: corner crops of several scales and other moments [TSN, TSM]."""
    mirror: bool = True
    """Videos: half of the augmented inputs are mirrored; off where left and right make classes."""
    observed: Literal["random", "full"] | None = None
    """What augmented inputs of skeletons show: ``random``: a random degree of progress, so that the network also knows
    clips that have only begun; ``full``: whole clips, as published. None: random for skeletons [reconstructed]."""
    levels: int = 10
    """N, the number of degrees of progress."""
    progress: Literal["prefix", "segment"] = "prefix"
    """What is seen at a degree of progress: everything up to it, or its own part alone [reconstructed]."""
    skeleton: Literal["scipy_bytescale", "float_bilinear"] = "scipy_bytescale"
    """How joints become images; see ``kdcache.skeletons.image``. Extract with the same."""

    frames: int | None = None
    """Videos: frames of a segment; none: what the backbone takes."""
    fps: float | None = None
    """Videos: rate at which these are taken; none spreads them over the clip."""
    size: int | None = None
    """Videos: side in pixels of the input; none: what the backbone takes."""
    resize: int | None = None
    """Videos: short side in pixels before cropping; none: 8/7 of ``size``."""

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise OptionError(f"label_fraction={self.label_fraction}: give the share of labels to use, in (0, 1].")
        for name in ("lr", "batch_size", "epochs", "levels", "frames"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise OptionError(f"{name}={value}: it must be positive.")
        for name in ("augmentations", "plateau", "patience", "grad_clip", "weight_decay", "momentum"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise OptionError(f"{name}={value}: it must not be negative.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout}: give a share of the features, 0 to below 1.")


# VA-CNN: the published code, section 4 of its paper. TSM: the published fine-tuning on UCF101 (its README), whose
# weight decay is that of Kinetics. The others have no published recipe for this and take TSM's [reconstructed], with
# the usual dropout of one half.
_VACNN = {
    "optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "batch_size": 32, "epochs": 100, "schedule": "plateau",
    "milestones": (), "patience": 8, "grad_clip": 0.0, "dropout": 0.0, "observed": "random",
}  # fmt: skip
_TSM = {
    "optimizer": "sgd", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64, "epochs": 25, "schedule": "steps",
    "milestones": (10, 20), "patience": 0, "grad_clip": 20.0, "dropout": 0.8, "observed": "full",
}  # fmt: skip
_OTHER = _TSM | {"dropout": 0.5, "batch_size": 32}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "vacnn": _VACNN,
    "tsm-resnet50": _TSM,
    "tsm-resnet50-online": _TSM,
    "resnet34": _OTHER,
    "i3d-rgb": _OTHER | {"dropout": 0.0},
    "resnext101": _OTHER,
}
"""Backbone → the options that its recipe decides."""

# Published recipes fine-tune. From random weights, VA-CNN's rate of 1e-4 that falls whenever two epochs bring nothing
# ends before anything is learned [reconstructed]; the others then take TSM's recipe for Kinetics.
_VACNN_SCRATCH = {"lr": 1e-3, "batch_size": 16, "epochs": 50, "schedule": "steps", "milestones": (40,), "patience": 0}
_SCRATCH = {"lr": 0.02, "epochs": 50, "milestones": (20, 40), "dropout": 0.5}

_SKELETONS = ("imagenet", "view_lr", "observed", "levels", "progress", "skeleton")
_VIDEOS = ("mirror", "frames", "fps", "size", "resize")


def resolve(backbone: str, options: Options) -> Options:
    """``options`` with the recipe of ``backbone`` where they leave it open.

    Raises ``OptionError`` for a backbone that cannot be fitted, and for an option that means nothing to it.
    """
    spec = input_spec(backbone)
    if backbone not in RECIPES:
        raise OptionError(
            f"{backbone} takes {spec.modality}, from which fit does not train; it fits {', '.join(RECIPES)}."
        )
    skeletons = spec.modality == "skeleton"
    for name in _VIDEOS if skeletons else _SKELETONS:
        if getattr(options, name) != getattr(Options(), name):
            raise OptionError(
                f"{name} is for {'videos' if skeletons else 'skeletons'}; {backbone} takes none: drop it."
            )
    if options.imagenet is not None and options.init is not None:
        raise OptionError("init and imagenet are two ways to start: give one of them.")
    random = options.imagenet is None and (options.init or (RANDOM if skeletons else "")).startswith(RANDOM)
    scratch = (_VACNN_SCRATCH if skeletons else _SCRATCH) if random else {}
    recipe = {**RECIPES[backbone], **scratch}
    options = replace(options, **{name: value for name, value in recipe.items() if getattr(options, name) is None})
    if skeletons and options.view_lr is None:
        options = replace(options, view_lr=float(options.lr or 0) / (1000 if random else 1))
    return options


def parse_set(sets: Sequence[str], dataset: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``["lr=0.01", "protocol=view"]`` → options of a fit, typed, and the texts that are left for the dataset.

    ``dataset.NAME=VALUE`` is the dataset's even where a fit has an option of that name. Without a ``dataset`` all must
    be options of a fit. ``split`` is the dataset's, which may have one; the command has an option of its own for it.
    """
    every = get_type_hints(Settings)
    names = SETTABLE if dataset else ("split", *SETTABLE)
    hints = {name: every[name] for name in names} | get_type_hints(Options)
    others = [text for text in sets if dataset and text.partition("=")[0] not in hints]
    own = parse_texts(hints, [text for text in sets if text not in others])
    return own, tuple(text.removeprefix("dataset.") for text in others)


def read_config(path: str | Path) -> tuple[Settings, Options, dict[str, Any]]:
    """Settings, options, and what was resolved, from the ``config.toml`` of a fit."""
    path = Path(path)
    content = tomllib.loads(path.read_text())
    resolved, options = content.pop("resolved", {}), content.pop("options", {})
    if "backbone" not in content:
        raise OptionError(f"{path} is not of a fit: name the config.toml in a folder that `kdcache fit` made.")
    return build(Settings, content), build(Options, options), resolved


def load_config(path: str | Path) -> dict[str, Any]:
    """The arguments of ``fit`` that a ``config.toml`` stands for: ``fit(**load_config(path), out=...)``."""
    settings, options, _ = read_config(path)
    return {f.name: getattr(settings, f.name) for f in fields(settings)} | {
        f.name: getattr(options, f.name) for f in fields(options)
    }
