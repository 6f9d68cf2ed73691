"""Recognition, trained by cross-entropy on labelled clips: a classifier on cached features
(``recognition_features``); or, with ``backbone``, a backbone and its classifier, which is what ``kdcache fit`` trains.

The latter has one stage on frames or skeleton images, made from the sources on demand or read from a cached ``rgb``
stream. The class scores of a clip are those of the mean of its images' pooled features. Networks for which recipes are
published start from these; the others take TSM's. [reconstructed]
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache import __version__, backbones
from kdcache.backbones import input_spec, vacnn
from kdcache.backbones.base import Backbone
from kdcache.backbones.checkpoint import load_state_dict, random_init
from kdcache.backbones.external_weights import fresh
from kdcache.backbones.metadata import FitMetadata, read_metadata
from kdcache.backbones.published import published_for
from kdcache.backbones.weights import RANDOM, asked_by, find, random_seed
from kdcache.errors import OptionError
from kdcache.log import logger
from kdcache.methods import recognition_features
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
from kdcache.methods.options import build_optimizer
from kdcache.methods.recognition_options import FEATURES, RecognitionOptions, with_recipe
from kdcache.methods.search import Knob

STAGE = "fit"
_PUBLISHED = "published"


Options = RecognitionOptions
KNOBS = (
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
    Knob("weight_decay", (1e-5, 1e-4, 1e-3), (1e-6, 0.0), (1e-2, 1e-1), of_objective=False),
)
"""What is searched of each row. [reconstructed]"""


def inputs(options: RecognitionOptions) -> tuple[Input, ...]:
    """``x``: cached features; of a backbone frames of a clip, or the image of its skeleton."""
    if options.backbone is None:
        return recognition_features.inputs(options)
    options = with_recipe(options)
    spec = input_spec(_backbone(options))
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
    """The options with the recipe of the backbone (or of features) and the target."""
    if options.backbone is None:
        return recognition_features.resolve(options, data)
    return replace(with_recipe(options), target=options.choose_target(data))


def stages(options: RecognitionOptions, data: Data) -> Iterator[Stage]:
    """The one stage; ``OptionError`` where ``options`` need validation clips and there are none."""
    if options.backbone is None:
        yield from recognition_features.stages(options, data)
        return
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
    if options.backbone is None:
        return recognition_features.predictor(options, data)
    classes = len(data.classes[options.target])
    net = _random(_backbone(options), classes, 0)
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
        if kept.ndim == 3:  # of single images
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
    chosen = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in ("backbone", *FEATURES)}
    chosen = {k: "none" if v is None else list(v) if isinstance(v, tuple) else v for k, v in chosen.items()}
    return FitMetadata(
        backbone=_backbone(options),
        num_classes=len(data.classes[options.target]),
        classes=tuple(data.classes[options.target]),
        limits=data.info.get("limits"),
        fitted_on=tuple(sorted({*(origin.fitted_on if origin else ()), *train})),
        validated_on=tuple(sorted({*(origin.validated_on if origin else ()), *validation})),
        options={**chosen, "seed": data.seed},
        version=__version__,
    )


def _backbone(options: RecognitionOptions) -> str:
    """The name of the backbone that is trained."""
    assert options.backbone is not None  # without one, features are classified
    return options.backbone


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
    name, classes = _backbone(options), len(data.classes[options.target])
    init = options.init or _published(name) or f"{RANDOM}{data.seed}"
    if (drawn := random_seed(init)) is not None:
        net = _random(name, classes, drawn)
        imagenet = load_state_dict(find(name, options.imagenet)) if options.imagenet is not None else None
        if isinstance(net, vacnn.VACNN):
            vacnn.start(net, drawn, imagenet)
        logger.info("%s starts from %s", name, options.imagenet or f"random weights ({init})")
    else:
        with asked_by("--set init="):
            chosen = backbones.choose(name, None if init == _PUBLISHED else init)
        net = backbones.build(name, chosen, num_classes=classes)
        shown = chosen.path or chosen.spec
        logger.info("%s starts from %s, with a new classifier for %d classes", name, shown, classes)
    drawn_anew = random_init(net, data.seed)
    net.load_state_dict({k: v for k, v in drawn_anew.items() if k in net.classifier}, strict=False)
    net.load_metadata(metadata(options, data, None))
    return Classifier(net, float(options.dropout or 0)).to(data.device)


def origin(options: RecognitionOptions) -> FitMetadata | None:
    """What the weights from which training started say of their own fit; None for published and random ones."""
    name = _backbone(options)
    init = options.init or _published(name) or f"{RANDOM}0"
    if random_seed(init) is not None:
        return None
    with asked_by("--set init="):
        file = backbones.choose(name, None if init == _PUBLISHED else init).path
    return None if file is None else read_metadata(file)


def starts_from_random(options: RecognitionOptions) -> bool:
    """Whether training starts from random weights, so that hidden layers of two trainings need not be comparable."""
    init = options.init or _published(_backbone(options)) or RANDOM
    return options.imagenet is None and init.startswith(RANDOM)


def _published(name: str) -> str | None:
    """Where training starts by default: weights that are published, or that a builder brings; None: random ones."""
    return _PUBLISHED if published_for(name) or backbones.is_external(name) else None


def _random(name: str, classes: int, seed: int) -> Backbone:
    """As ``build`` with ``random:SEED``, without its warning: here random weights are but a start."""
    if backbones.is_external(name):
        return fresh(name, classes, seed)
    entry = backbones.REGISTRY[name]
    made: Backbone = importlib.import_module(f"kdcache.backbones.{entry.module}").make(
        entry.input, classes, **entry.options
    )
    made.load_state_dict(random_init(made, seed))
    return made
