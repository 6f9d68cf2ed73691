"""Imprinting the motion (Papicchio, Poeta & Pes): Ego-RNN that learns which parts of a single frame are about to move.

Blocks (Figure 2): the action recognition block (ResNet-34, spatial attention, ConvLSTM, classifier); the motion
segmentation (MS) head on F, the output of layer 4, with the motion map m of improved dense trajectories as its target;
the feedback branch, which turns U_{t-1}, the head's features of the frame before, into β and γ for conv1 of frame t:

    θ(F^rgb) = β ⊙ F^rgb + γ                                                               (1)
    L_tot = L_cl + α L_ms                                                                   (4)

where L_cl (2) is the cross entropy of the action and L_ms (3) that of the cells of m, which move where their share of
motion is above τ; or (5) and (6), the regression of that share. L_cl does not reach the MS head; nothing flows through
U.

Stages: 1. ConvLSTM and classifier; 2. with layer 4, the ImageNet classifier (its maps are the attention) and the MS
head; 3. with conv1 and the feedback branch, the MS head frozen. In stages 2 and 3 the batch norms of layer 4 are
trained, all others stay. The paper does not say whether the ConvLSTM and both classifiers go on in stage 3; they do in
its authors' code, and here. There the frames of a clip come one after the other, and are normalised so, at every stage;
here they do only where there is feedback. [reconstructed]

Stages 1 and 2 read cached layer-3 maps, stage 3 frames; the network that answers sees frames alone, never motion maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdcache import losses
from kdcache.errors import OptionError
from kdcache.methods import egocentric
from kdcache.methods.contract import Batch, Data, Input, Predictor, Stage, predict_with, reseed
from kdcache.methods.egocentric import EgocentricOptions
from kdcache.methods.imprint_networks import MAPS, Feedback, Imprint, MotionSegmentation, motion_share, theta
from kdcache.methods.labels import Clips
from kdcache.methods.options import refuse_meaningless, refuse_unless_positive
from kdcache.methods.pictures import Picture, StageLoader
from kdcache.methods.search import Knob

DRAWN = 2  # channels whose β and γ are shown
SHARED: dict[str, tuple[str, ...]] = {"stage1": ("attention", "stage1")}
SHARED["stage2"] = (*SHARED["stage1"], "ms", "ms_head", "ms_reduction", "tau", "alpha", "stage2")
"""Options that a stage depends on beside those of all egocentric methods: runs that differ in others share it."""


@dataclass(frozen=True, kw_only=True)
class ImprintOptions(EgocentricOptions):
    """Everything that can be set. Defaults are the paper's, or ``[reconstructed]`` where it gives none."""

    frames: int = 7
    """N, frames spread evenly over a clip."""
    ms: Literal["cls", "reg_mse", "reg_l1", "none"] = "cls"
    """L_ms: cross entropy (3), squared (5) or absolute (6) difference of the shares, or no motion segmentation."""
    ms_head: Literal["cells", "softmax49"] = "cells"
    """Of ``ms=cls``: still or moving for each cell (authors' code), or one softmax over the cells, as printed."""
    ms_reduction: Literal["code", "paper"] = "code"
    """Over the cells of a frame and the clips of a batch: means; or sums, but (5), which is a mean over cells."""
    feedback: Literal["off", "conv1", "layer3"] = "conv1"
    """Where β and γ modulate: after conv1, or after layer 3: the light variant, which never reads frames."""
    feedback_init: Literal["identity", "default"] = "identity"
    """β and γ start as 1 and 0, or from PyTorch's random weights, which nearly erase conv1. [reconstructed]"""
    stages: Literal[2, 3] = 3
    """2: MS and feedback are trained together, by the schedule of stage 2 (§4.3)."""
    freeze_ms_stage3: bool = True
    """The MS head stays as it is in stage 3; off, it goes on."""
    stage3_backbone: Literal["conv1+layer4", "whole"] = "conv1+layer4"
    """What of the ResNet is trained with feedback after conv1."""
    attention: bool = True
    """Spatial attention; off, the ConvLSTM reads F."""
    tau: float = 0.2
    """τ: a cell moves where its share of motion is larger."""
    alpha: float = 1.0
    """α, the weight of L_ms."""
    stage1: str = "adam lr=1e-3 epochs=300 milestones=25/75/150 weight_decay=4e-5 eps=1e-4 batch_size=32"
    """Schedule of stage 1 (Table 1 has 25 75 100, §4.2 25 75 150)."""
    stage2: str = "adam lr=1e-4 epochs=150 milestones=25/75 weight_decay=4e-5 eps=1e-4 batch_size=32"
    """Schedule of stage 2."""
    stage3: str = "adam lr=1e-4 epochs=200 milestones=50/100/150 weight_decay=4e-5 eps=1e-4 batch_size=4"
    """Schedule of stage 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless_positive(self, "alpha")
        for name in ("stage1", "stage2", "stage3"):
            self.schedule(name)
        if not 0 <= self.tau < 1:
            raise OptionError(f"tau={self.tau:g}: give a share of motion, 0 or more and below 1.")
        if self.ms == "none" and self.feedback != "off":
            raise OptionError(f"feedback={self.feedback} reads the motion segmentation, and ms=none: set feedback=off.")
        one_shot, regression = self.stages == 2, self.ms.startswith("reg")
        refuse_meaningless(
            self,
            (self.ms == "none", "ms=none", ("ms_head", "ms_reduction", "alpha", "tau")),
            (regression, f"ms={self.ms}, which predicts the share itself", ("ms_head", "tau")),
            (self.feedback == "off", "feedback=off", ("feedback_init", "stages", "freeze_ms_stage3")),
            (self.feedback != "conv1", f"feedback={self.feedback}", ("stage3_backbone",)),
            (one_shot, "stages=2", ("freeze_ms_stage3",)),
        )

    @property
    def cells(self) -> int:
        """s: F of a frame has s × s cells, each of 32 × 32 pixels."""
        return -(-self.size // 32)

    @property
    def last(self) -> str:
        """The stage whose network answers."""
        return "stage2" if self.feedback == "off" or self.stages == 2 else "stage3"

    @property
    def seen_last(self) -> tuple[str, str]:
        """The inputs of that network and of its target in training: RGB (or maps) and motion maps."""
        return ("rgb", "motion") if self.feedback == "conv1" else ("maps", "motion_beside")


Options = ImprintOptions
KNOBS = (
    Knob("alpha", (0.1, 0.3, 1.0, 3.0), (0.03, 0.01), (10.0, 30.0), lambda o: o.ms != "none"),
    Knob("tau", (0.1, 0.2, 0.4), (0.05, 0.0), (0.6,), lambda o: o.ms == "cls"),
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
)
"""What is searched of each row. [reconstructed]"""


def inputs(options: ImprintOptions) -> tuple[Input, ...]:
    """``maps`` of layer 3 and the motion maps beside them; with feedback after conv1 also frames, and their maps."""
    frames = options.feedback == "conv1"
    found = [options.maps(when="train" if frames else "always")]
    if options.ms != "none" and not (frames and options.stages == 2):
        found.append(options.seen("motion_beside", "idt", "train", beside=True))
    if frames:
        found += [options.seen("rgb", "rgb"), options.seen("motion", "idt", "train")]
    return tuple(found)


resolve = egocentric.decide


def stages(options: ImprintOptions, data: Data) -> Iterator[Stage]:
    """Stage 1, stage 2, and with feedback stage 3 (or all that it trains in stage 2)."""
    clips, net = Clips(options, data), network(options, data, egocentric.imagenet(options, data))
    action = net.action
    head = [] if net.ms is None else [*net.ms.parameters()]

    def stage(name: str, module: Imprint, x: str, m: str, trained: Iterable[nn.Parameter]) -> Stage:
        def objective(batch: Batch) -> dict[str, Tensor]:
            out = module(batch[x])
            terms = {"L_cl": losses.l_c(out["logits"], batch["y"]).mean()}  # (2)
            if module.ms is not None:
                terms["L_ms"] = options.alpha * l_ms(options, module.ms(out["maps"]), batch[m])  # (4)
            return terms

        return options.schedule(name).stage(
            name,
            module,
            clips.train(x, *([] if module.ms is None else [m])),
            objective,
            clips.held_out(x),
            trained,
            predict_with(module, x),
            share_key=None if module is net else options.shared(*SHARED[name]),
            **options.stage_fields,
        )

    yield stage("stage1", Imprint(action), "maps", "", egocentric.recurrence(action))
    if options.last == "stage3" or net.feedback is None:
        second = Imprint(action, net.ms)
        yield stage("stage2", second, "maps", "motion_beside", [*egocentric.from_layer4(action), *head])
    if net.feedback is not None:
        backbone = [*(egocentric.whole if options.stage3_backbone == "whole" else egocentric.from_layer4)(action)]
        if options.feedback == "conv1" and options.stage3_backbone != "whole":
            backbone.append(action.resnet.get_parameter("conv1.weight"))
        goes_on = options.last == "stage2" or not options.freeze_ms_stage3
        trained = [*backbone, *net.feedback.parameters(), *(head if goes_on else [])]
        yield stage(options.last, net, *options.seen_last, trained)


def predictor(options: ImprintOptions, data: Data) -> Predictor:
    """The whole network, untrained, which sees frames (or layer-3 maps) alone."""
    name, net = options.seen_last[0], network(options, data)
    return Predictor(
        stage=options.last,
        module=net,
        predict=predict_with(net, name),
        inputs={name: data.inputs[name]},
        role="clip",
        batch_size=options.schedule(options.last).batch_size,
        trained_in=("stage1", "stage2") if options.last == "stage3" else ("stage1",),
    )


def network(options: ImprintOptions, data: Data, start: dict[str, Tensor] | None = None) -> Imprint:
    """All blocks that the options ask for; ``start``: the ResNet-34's weights."""
    reseed(data, "action")
    action = egocentric.branch(options, data, start=start, attention=options.attention)
    ms = feedback = None
    if options.ms != "none":
        reseed(data, "ms")
        ms = MotionSegmentation(options.cells, two=options.ms == "cls" and options.ms_head == "cells")
    if options.feedback != "off":
        reseed(data, "feedback")
        feedback = Feedback(MAPS[options.feedback], options.feedback_init == "identity")
    return Imprint(action, ms, feedback, "layer3" if options.feedback == "layer3" else "conv1").to(data.device)


def l_ms(options: ImprintOptions, l: Tensor, maps: Tensor) -> Tensor:  # noqa: E741
    """L_ms of what the head says, equation (3), (5) or (6), against motion maps uint8 ``[B, T, S, S]``; a scalar."""
    assert options.ms != "none"
    share = motion_share(maps, options.cells)
    m = (share > options.tau).float() if options.ms == "cls" else share
    if options.ms_reduction == "code":
        return losses.l_ms(l, m, options.ms).mean()
    return losses.l_ms(l, m, options.ms, "mean" if options.ms == "reg_mse" else "sum").sum()


@torch.no_grad()
def explain(
    options: ImprintOptions, data: Data, predictor: Predictor, batch: Batch, load: StageLoader
) -> list[Picture]:
    """Figure 1: the CAM before and after feedback; the motion segmentation and its target; Figure 3: β, γ and conv1."""
    (name, target), net = options.seen_last, predictor.module
    assert isinstance(net, Imprint)
    out = net(batch[name])
    cams = {"CAM" if net.feedback is None else "CAM after feedback": out["attention"]}
    if net.feedback is not None:
        other = network(options, data)
        three = options.last == "stage3"
        before = load("stage2", Imprint(other.action, other.ms)) if three else load("stage1", Imprint(other.action))
        if before is not None:
            cams = {"CAM before feedback": before(batch[name])["attention"]} | cams
    pictures = drawn(cams, over=True)
    if net.ms is not None:
        l = net.ms(out["maps"])  # noqa: E741
        said = l if options.ms != "cls" else l.softmax(2)[:, :, 1] if net.ms.two else l.flatten(2).softmax(2).view_as(l)
        what = "share of motion" if options.ms != "cls" else "probability of motion"
        note = what if options.ms != "cls" or net.ms.two else "softmax over the cells"
        pictures.append(Picture(title="motion segmentation", values=plain(said), note=note, scale=(0.0, 1.0)))
        if target in batch:
            note = f"share of motion; moving above {options.tau:g}" if options.ms == "cls" else "share of motion"
            share = plain(motion_share(batch[target], options.cells))
            pictures.append(Picture(title="motion map", values=share, note=note, scale=(0.0, 1.0)))
    if net.feedback is not None and options.frames > 1:
        pictures += modulation(net, net.early(batch[name]), out["maps"])
    return pictures


def modulation(net: Imprint, before: Tensor, maps: Tensor) -> list[Picture]:
    """Figure 3: β and γ of the channels that differ most from 1 and 0 (their values at t = 1, where no frame is
    before), and the features before and after θ(·); of ``before`` ``[1, T, C, h, w]`` and F ``[1, T, 512, s, s]``."""
    beta, gamma = net.factors(maps[0, :-1], before[0, 1:])  # t = 2 … T
    first = torch.ones_like(beta[:1]), torch.zeros_like(gamma[:1])
    beta, gamma = torch.cat([first[0], beta]), torch.cat([first[1], gamma])
    away = (beta - 1).abs().mean((0, 2, 3)) + gamma.abs().mean((0, 2, 3))
    after, pictures = theta(before[0], beta, gamma), []
    for c in away.topk(min(DRAWN, len(away))).indices.tolist():
        note = "a channel far from beta = 1, gamma = 0"
        pictures += drawn({f"beta_{c}": beta[None, :, c]}, note=note) + drawn({f"gamma_{c}": gamma[None, :, c]})
        features = {f"{net.at}_{c}": before[:, :, c], f"theta({net.at}_{c})": after[None, :, c]}
        pictures += drawn(features, note="before and after theta = beta x + gamma")
    return pictures


def drawn(maps: Mapping[str, Tensor], over: bool = False, note: str = "") -> list[Picture]:
    """Pictures of maps ``[1, T, h, w]`` on one scale."""
    values = {title: plain(each) for title, each in maps.items()}
    scale = min(float(v.min()) for v in values.values()), max(float(v.max()) for v in values.values())
    return [Picture(title=title, values=each, over=over, note=note, scale=scale) for title, each in values.items()]


def plain(maps: Tensor) -> Tensor:
    """Maps of the only clip, float32 on the CPU."""
    return maps[0].float().cpu()
