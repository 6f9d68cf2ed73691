"""Options of recognition, and the recipe of each backbone, and of features, where they leave it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdcache import backbones
from kdcache.backbones import input_spec
from kdcache.backbones.weights import RANDOM
from kdcache.errors import OptionError
from kdcache.methods.options import (
    LeakOptions,
    refuse_meaningless,
    refuse_negative,
    refuse_unless_positive,
    refuse_unless_share,
)


@dataclass(frozen=True, kw_only=True)
class RecognitionOptions(LeakOptions):
    """Everything that can be set; ``none`` stands for the recipe of the backbone, or of features, see ``RECIPES``."""

    backbone: str | None = None
    """Name in ``kdcache.backbones.names()`` of the network to train on frames or skeletons; none: a classifier is
    trained on cached features."""

    head: Literal["linear", "mlp"] = "linear"
    """Features: a linear classifier, or one with a hidden layer."""
    pool: Literal["mean", "attention", "last"] = "mean"
    """Features: how the vectors of a clip become one: their mean; a mean with learned softmax weights; or that of the
    last time step (level)."""
    width: int = 256
    """Features: hidden units of the MLP."""
    standardise: bool = True
    """Features: each is shown with mean 0 and variance 1 over the labelled training clips."""

    init: str | None = None
    """Checkpoint of this backbone to start from, with a new classifier, or ``random:SEED``; none: the published one
    (flow ResNet-34: the RGB one, cross-modally), random weights where there is none."""
    imagenet: str | None = None
    """VA-CNN: checkpoint of an ImageNet ResNet-50 (vacnn-small: ResNet-18) that its classifier starts from, as
    published; none: random."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are exported: the best one on the validation clips, or the last."""

    optimizer: Literal["adam", "sgd"] | None = None
    """Features and VA-CNN: Adam. Other backbones: SGD."""
    lr: float | None = None
    """Learning rate; from random weights more than the published recipes have, which fine-tune [reconstructed]."""
    view_lr: float | None = None
    """VA-CNN: learning rate of the network that chooses the view; none: ``lr`` where the classifier starts from a
    checkpoint, as published, a thousandth of it from random weights [reconstructed]. 6,272 inputs move each angle: at a
    common rate the views change faster than an untrained classifier can follow, and nothing is learned (after eight
    epochs on MSR Action3D the loss is still that of chance)."""
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
    """Early stopping: epochs without a better one on the validation clips after which fitting stops; 0: never."""
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
    """What augmented inputs of skeletons show: ``random``: a random observation ratio, so that the network also knows
    clips that have only begun; ``full``: whole clips, as published. None: random for skeletons [reconstructed]."""
    levels: int = 10
    """N, the number of levels of progress."""
    progress: Literal["prefix", "segment"] = "prefix"
    """What is seen at a level: everything up to it, or its own part alone [reconstructed]."""
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
        LeakOptions.__post_init__(self)
        refuse_unless_positive(self, "lr", "batch_size", "epochs", "levels", "frames", "width", "fps", "size", "resize")
        refuse_meaningless(
            self,
            (self.backbone is not None, "a backbone, for it is of classifiers on features", FEATURES),
            (self.backbone is None, "features, for it is of a backbone", (*_TRAINED_BACKBONE, *_SKELETONS, *_VIDEOS)),
            (self.head == "linear", "head=linear", ("width",)),
        )
        refuse_negative(
            self, "augmentations", "plateau", "patience", "grad_clip", "weight_decay", "gamma", "milestones", "view_lr"
        )
        refuse_unless_share(self, "dropout", "momentum")

    def completed(self) -> RecognitionOptions:
        """The options with what they leave open, as far as the data does not decide it."""
        return with_recipe(self)

    def unused(self) -> tuple[str, ...]:
        """Options that mean nothing to what is trained: to features those of backbones, to a backbone the reverse."""
        return FEATURES if self.backbone is not None else (*_TRAINED_BACKBONE, "keep", *_SKELETONS, *_VIDEOS)


FEATURES = ("head", "pool", "width", "standardise", "allow_leak")
"""Options of classifiers on features alone."""
_TRAINED_BACKBONE = ("init", "imagenet", "keep", "view_lr", "augmentations")
_SKELETONS = ("imagenet", "view_lr", "observed", "levels", "progress", "skeleton")
_VIDEOS = ("mirror", "frames", "fps", "size", "resize")


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
# A classifier on features is quick to train and few clips overfit it: many short steps of Adam, half of the features
# dropped, weights decayed [reconstructed].
_FEATURES: Mapping[str, Any] = {
    "optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-3, "batch_size": 32, "epochs": 50, "schedule": "steps",
    "milestones": (), "patience": 0, "grad_clip": 0.0, "dropout": 0.5,
}  # fmt: skip
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "vacnn": _VACNN,
    "vacnn-small": _VACNN,
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
_VACNN_SMALL_SCRATCH = _VACNN_SCRATCH | {"epochs": 12, "milestones": (8, 11)}
_SCRATCH = {"lr": 0.02, "epochs": 50, "milestones": (20, 40), "dropout": 0.5}

_FROM_RANDOM: Mapping[str, Mapping[str, Any]] = {"vacnn": _VACNN_SCRATCH, "vacnn-small": _VACNN_SMALL_SCRATCH}


def with_recipe(options: RecognitionOptions) -> RecognitionOptions:
    """``options`` with the recipe of their backbone, or of features, where they leave it open.

    Raises:
        OptionError: a backbone that cannot be trained here, or an option that means nothing to it.
    """
    if options.backbone is None:
        return replace(options, **{name: v for name, v in _FEATURES.items() if getattr(options, name) is None})
    backbone = backbones.canonical(options.backbone)
    spec = input_spec(backbone)
    elsewhere = backbones.is_external(backbone) and spec.modality == "rgb"
    if backbone not in RECIPES and not elsewhere:
        raise OptionError(
            f"{backbone} takes {spec.modality}, from which fit does not train; it fits {', '.join(RECIPES)}, and "
            "networks of RGB from elsewhere such as torchvision:s3d."
        )
    skeletons = spec.modality == "skeleton"
    published = RECIPES.get(backbone, _OTHER)
    for name in _VIDEOS if skeletons else _SKELETONS:
        if getattr(options, name) not in (getattr(RecognitionOptions(), name), published.get(name)):
            raise OptionError(
                f"{name} is for {'videos' if skeletons else 'skeletons'}; {backbone} takes none: drop it."
            )
    if options.imagenet is not None and options.init is not None:
        raise OptionError("init and imagenet are two ways to start: give one of them.")
    random = options.imagenet is None and (options.init or (RANDOM if skeletons else "")).startswith(RANDOM)
    scratch = _FROM_RANDOM.get(backbone, _SCRATCH) if random else {}
    recipe = {**published, **scratch}
    options = replace(options, **{name: value for name, value in recipe.items() if getattr(options, name) is None})
    if skeletons and options.view_lr is None:
        options = replace(options, view_lr=float(options.lr or 0) / (1000 if random else 1))
    return replace(options, backbone=backbone)
