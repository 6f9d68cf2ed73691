"""Recognition: a backbone and a classifier, trained by cross-entropy on labelled clips; what ``kdcache fit`` trains.

One stage on frames or skeleton images, made from the sources on demand or read from a cached ``rgb`` stream. The class
scores of a clip are those of the mean of its images' pooled features. Networks for which recipes are published start
from these; the others take TSM's. [reconstructed]
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache import __version__, backbones
from kdcache.backbones import input_spec, vacnn
from kdcache.backbones.base import Backbone
from kdcache.backbones.checkpoint import load_state_dict, random_init
from kdcache.backbones.framewise import Framewise
from kdcache.backbones.metadata import FitMetadata, read_metadata
from kdcache.backbones.published import TABLE
from kdcache.backbones.weights import RANDOM, find, random_seed
from kdcache.backbones.weights import resolve as resolve_weights
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods.contract import (
    VALIDATION,
    Batch,
    BatchSource,
    Data,
    Input,
    Outputs,
    Predictor,
    Segment,
    SkeletonSegment,
    Stage,
    predict_with,
)
from kdcache.methods.labels import held_out_sets, keep_fraction, labelled_sets
from kdcache.methods.options import LabelOptions, build_optimizer, refuse_negative, refuse_unless_positive

STAGE = "fit"


@dataclass(frozen=True, kw_only=True)
class RecognitionOptions(LabelOptions):
    """Everything that can be set; ``none`` stands for the recipe of the backbone, see ``RECIPES``."""

    backbone: str = "vacnn"
    """Name in ``kdcache.backbones.names()``."""
    init: str | None = None
    """Checkpoint of this backbone to start from, with a new classifier, or ``random:SEED``; none: the published one,
    random weights where there is none."""
    imagenet: str | None = None
    """VA-CNN: checkpoint of an ImageNet ResNet-50 that its classifier starts from, as published; none: random."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are exported: the best one on the validation clips, or the last."""

    optimizer: Literal["adam", "sgd"] | None = None
    """VA-CNN: Adam. Others: SGD."""
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
        LabelOptions.__post_init__(self)
        refuse_unless_positive(self, "lr", "batch_size", "epochs", "levels", "frames")
        refuse_negative(self, "augmentations", "plateau", "patience", "grad_clip", "weight_decay", "momentum")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise OptionError(f"dropout={self.dropout}: give a share of the features, 0 to below 1.")


Options = RecognitionOptions

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


def with_recipe(options: RecognitionOptions) -> RecognitionOptions:
    """``options`` with the recipe of their backbone where they leave it open.

    Raises:
        OptionError: a backbone that cannot be trained here, or an option that means nothing to it.
    """
    backbone = backbones.canonical(options.backbone)
    spec = input_spec(backbone)
    if backbone not in RECIPES:
        raise OptionError(
            f"{backbone} takes {spec.modality}, from which fit does not train; it fits {', '.join(RECIPES)}."
        )
    skeletons = spec.modality == "skeleton"
    for name in _VIDEOS if skeletons else _SKELETONS:
        if getattr(options, name) not in (getattr(RecognitionOptions(), name), RECIPES[backbone].get(name)):
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
    return replace(options, backbone=backbone)


def inputs(options: RecognitionOptions) -> tuple[Input, ...]:
    """``x``: frames of a clip, or the image of its skeleton."""
    options = with_recipe(options)
    spec = input_spec(options.backbone)
    if spec.modality == "skeleton":
        skeleton = SkeletonSegment(
            resize=options.skeleton,
            observed=options.observed or "full",
            levels=options.levels,
            progress=options.progress,
            augmentations=options.augmentations,
        )
        return (Input(name="x", axes="THWC", stream="skeleton", segment=skeleton),)
    size = options.size or spec.size
    segment = Segment(
        frames=options.frames or spec.frames,
        size=size,
        resize=options.resize or (spec.resize if size == spec.size else None),
        fps=options.fps,
        augmentations=options.augmentations,
        mirror=options.mirror,
    )
    return (Input(name="x", axes="THWC", stream="rgb", segment=segment, extract=("rgb",)),)


def resolve(options: RecognitionOptions, data: Data) -> RecognitionOptions:
    """The options with the recipe of the backbone and the target."""
    return replace(with_recipe(options), target=options.choose_target(data))


def stages(options: RecognitionOptions, data: Data) -> Iterator[Stage]:
    """The one stage; ``OptionError`` where ``options`` need validation clips and there are none."""
    train = data.splits["train"]
    S, _, y = _sets(options, data)
    eval_sets = held_out_sets(data, options.target, {"x": data.inputs["x"]}, "clip")
    eval_sets = {split: source for split, source in eval_sets.items() if split == VALIDATION}
    if options.schedule == "plateau" and not eval_sets:
        raise OptionError(
            "schedule=plateau follows the accuracy on validation clips, and there are none: set "
            "validation=0.2, or schedule=steps."
        )
    network = _start(options, data)
    optimizer, scheduler = build_optimizer(
        _groups(network, options),
        optimizer=options.optimizer or "sgd",
        lr=float(options.lr or 0),
        momentum=options.momentum,
        weight_decay=float(options.weight_decay or 0),
        schedule=options.schedule or "steps",
        milestones=options.milestones or (),
        gamma=options.gamma,
        plateau=options.plateau,
    )

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(network(batch["x"])["logits"].float(), batch["y"])}

    yield Stage(
        name=STAGE,
        module=network,
        train=BatchSource({"x": (data.inputs["x"], train.rows["clip"][S])}, {"y": y[S]}),
        losses=losses,
        predict=predict_with(network),
        epochs=int(options.epochs or 0),
        batch_size=int(options.batch_size or 0),
        eval_sets=eval_sets,
        optimizer=optimizer,
        scheduler=scheduler,
        grad_clip=float(options.grad_clip or 0),
        patience=int(options.patience or 0),
    )


def predictor(options: RecognitionOptions, data: Data) -> Predictor:
    """The untrained network that answers, and what it sees."""
    classes = len(data.classes[options.target])
    net = _random(options.backbone, classes, 0)
    net.load_metadata(metadata(options, data, None))
    network = Classifier(net, float(options.dropout or 0)).to(data.device)
    inputs = {"x": data.inputs["x"]}
    return Predictor(
        stage=STAGE,
        module=network,
        predict=predict_with(network),
        inputs=inputs,
        role="clip",
        batch_size=int(options.batch_size or 0),
    )


class Classifier(nn.Module):
    """A backbone as it is trained: what extraction feeds it → ``logits`` ``[B, C]`` and ``pooled`` features.

    Logits are the classifier on the mean of the images' pooled features: the mean of their logits, for it is linear.
    """

    def __init__(self, net: Backbone, dropout: float) -> None:
        super().__init__()
        volumes = any(p.ndim == 5 for p in net.parameters())
        self.net = net.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Outputs:
        """``uint8 [B, T, H, W, C]`` (skeleton images also float32) → logits, and pooled ``[B, T, d]`` or ``[B, d]``."""
        pooled = self.net.features(self.net.prepare(x), "pool")
        kept = self.dropout(pooled)
        if isinstance(self.net, Framewise):
            kept = kept.mean(1)
        named = dict(self.net.named_parameters())
        weight, bias = (named[name] for name in self.net.classifier)
        return {"logits": F.linear(kept, weight.flatten(1), bias), "pooled": pooled}


def metadata(options: RecognitionOptions, data: Data, origin: FitMetadata | None) -> FitMetadata:
    """What an exported weights file says: clips seen by the weights from which training started count too."""
    S, _, _ = _sets(options, data)
    train = [data.splits["train"].names[i] for i in S.tolist()]
    held_out = data.splits.get(VALIDATION)
    judged = [] if held_out is None else labelled_sets(held_out.labels[options.target])[0].tolist()
    validation = [] if held_out is None else [held_out.names[i] for i in judged]
    chosen = {f.name: getattr(options, f.name) for f in fields(options) if f.name != "backbone"}
    chosen = {k: "none" if v is None else list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}
    return FitMetadata(
        backbone=options.backbone,
        num_classes=len(data.classes[options.target]),
        classes=tuple(data.classes[options.target]),
        limits=data.info.get("limits"),
        fitted_on=tuple(sorted({*(origin.fitted_on if origin else ()), *train})),
        validated_on=tuple(sorted({*(origin.validated_on if origin else ()), *validation})),
        options={**chosen, "seed": data.seed},
        version=__version__,
    )


def _sets(options: RecognitionOptions, data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Labelled and unlabelled training clips as indices, and classes of all of them, after ``label_fraction``."""
    y = keep_fraction(data.splits["train"].labels[options.target], options.label_fraction, options.label_seed)
    return *labelled_sets(y), y


def _groups(network: Classifier, options: RecognitionOptions) -> list[dict[str, Any]]:
    """What the optimiser moves; VA-CNN's view network at a rate of its own."""
    net = network.net
    if not isinstance(net, vacnn.VACNN):
        return [{"params": list(network.parameters())}]
    seen = {id(p) for p in net.resnet.parameters()}
    view = [p for p in network.parameters() if id(p) not in seen]
    return [{"params": list(net.resnet.parameters())}, {"params": view, "lr": options.view_lr}]


def _start(options: RecognitionOptions, data: Data) -> Classifier:
    """The network as its training starts, on the device; ``WeightsError`` for a checkpoint that cannot be had."""
    name, classes = options.backbone, len(data.classes[options.target])
    init = options.init or ("" if name in TABLE else f"{RANDOM}{data.seed}")
    if (drawn := random_seed(init)) is not None:
        net = _random(name, classes, drawn)
        imagenet = load_state_dict(find(name, options.imagenet)) if options.imagenet is not None else None
        if isinstance(net, vacnn.VACNN):
            vacnn.start(net, drawn, imagenet)
        logger.info("%s starts from %s", name, options.imagenet or f"random weights ({init})")
    else:
        file = resolve_weights(name, init or None).path
        assert file is not None
        net = backbones.build(name, file, num_classes=classes)
        logger.info("%s starts from %s, with a new classifier for %d classes", name, file, classes)
    fresh = random_init(net, data.seed)
    net.load_state_dict({k: v for k, v in fresh.items() if k in net.classifier}, strict=False)
    net.load_metadata(metadata(options, data, None))
    return Classifier(net, float(options.dropout or 0)).to(data.device)


def origin(options: RecognitionOptions) -> FitMetadata | None:
    """What the weights from which training started say of their own fit; None for published and random ones."""
    init = options.init or ("" if options.backbone in TABLE else RANDOM + "0")
    if random_seed(init) is not None:
        return None
    file = resolve_weights(options.backbone, init or None).path
    return None if file is None else read_metadata(file)


def _random(name: str, classes: int, seed: int) -> Backbone:
    """As ``build`` with ``random:SEED``, without its warning: here random weights are but a start."""
    entry = backbones.REGISTRY[name]
    made: Backbone = importlib.import_module(f"kdcache.backbones.{entry.module}").make(
        entry.input, classes, **entry.options
    )
    made.load_state_dict(random_init(made, seed))
    return made
