"""Options of relation distillation. Only the paper's abstract is at hand: all of them are reconstructed, from
``[MARS]`` (its code) where that is said."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from kdcache.errors import OptionError
from kdcache.methods.contract import Input, Segment
from kdcache.methods.options import (
    LeakOptions,
    refuse_meaningless,
    refuse_negative,
    refuse_unless_positive,
    refuse_unless_share,
)
from kdcache.methods.schedule import Schedule, ScheduleOptions

STAGES = ("teacher", "appearance", "student", "fused")
MAP = "map"
"""The light head's only layer."""
VIEWS = ("centre", "centre-flip")
NETWORKS = {"resnext101": ("resnext101", "resnext101-flow", "layer3"), "i3d": ("i3d-rgb", "i3d-flow", "mixed4a")}
"""Backbone → that of RGB, that of flow, and the layer whose maps are cached."""
_LIGHT = "sgd lr=1e-2 epochs=60 milestones=40/55 weight_decay=1e-4"  # which starts from random weights
_FUSED = "sgd lr=1e-2 epochs=30 weight_decay=1e-4"
_MARS = "sgd lr=1e-3 dampening=0.9 epochs=400 plateau=10 weight_decay=1e-5"


@dataclass(frozen=True, kw_only=True)
class RelationOptions(LeakOptions, ScheduleOptions):
    """Everything that can be set. [reconstructed]"""

    network: Literal["fused", "student", "rgb", "flow", "two-stream", "three-stream"] = "fused"
    """What answers: A and S fused (RGB alone); S alone (RGB alone); A; F; the mean of A's and F's probabilities; that
    of A's, S's and F's."""
    backbone: Literal["resnext101", "i3d"] = "resnext101"
    """3-D ResNeXt-101, as MARS has, or I3D: that of the cached maps, or what is trained on frames."""
    start: Literal["maps", "frames"] = "maps"
    """Cached maps (ResNeXt's layer 3, I3D's mixed4a), whose network stays as it is up to there, which is what MARS
    fine-tunes; or cached frames and flow, on which whole networks are trained."""
    head: Literal["auto", "tail", "light"] = "auto"
    """On cached maps: the rest of the backbone, or a light head; ``auto``: tail with a GPU."""
    width: int = 256
    """Channels of the light head."""
    frames: int | None = None
    """T of a segment, spread evenly over the clip; none: what the backbone takes (16; 32). [MARS: consecutive]"""
    size: int | None = None
    """Side of the crop in pixels; none: what the backbone takes (112; 224)."""
    augmentations: int = 1000
    """Of frames: different views of a clip, one of which is drawn in each epoch; 0: always the centre crop."""
    mirror: bool = True
    """Half of these views are mirrored. Off, mirrored views of cached maps are not shown either, nor extracted by
    ``extract --for relation``."""
    init: str | None = None
    """Of ``start=frames``: checkpoint that A and S start from, or ``random:SEED``; none: the published weights."""
    init_flow: str | None = None
    """The same of F."""
    rep: float = 50.0
    """β, the weight of L_rep; 0: none. [MARS]"""
    ce: Literal["all", "fc"] = "all"
    """What L_ce trains of S: all of it; or the classifier alone, while the distillation terms train the rest (MERS)."""
    ir: Literal["none", "channel", "position", "temporal", "batch"] = "channel"
    """Which internal relations S learns from F."""
    ir_norm: Literal["frobenius", "gatys"] = "frobenius"
    """Of ``ir=channel``: Gram matrices of length 1, or as in style transfer."""
    taps: tuple[str, ...] = ()
    """Layers whose maps L_ir compares, with equal weight, each behind the cached one; none: ResNeXt layer4 (and layer3
    on frames), I3D Mixed_4f and Mixed_5c, the light head's only map."""
    mu: float = 1.0
    """μ, the weight of L_ir."""
    fusion: Literal["attention", "gate", "se", "concat", "sum", "average"] = "attention"
    """Of A's and S's pooled features: weights for each channel, softmax over the two streams; one weight for each
    stream; a sigmoid gate on both side by side; these as they are; their sum; or the mean of both probabilities."""
    ratio: int = 16
    """r: ``attention`` and ``se`` see both features through a bottleneck of 1/r of their width."""
    end_to_end: bool = False
    """A and S go on in the fusion's stage, at a tenth of its rate; off, they stay."""
    dropout: float = 0.5
    """Before the classifier of the fusion, of I3D and of the light head."""
    teacher: str = ""
    """Schedule of F, on top of ``sgd lr=1e-3 dampening=0.9 epochs=400 plateau=10 weight_decay=1e-5`` [MARS, whose
    plateau is of the validation loss]; of the light head on top of ``sgd lr=1e-2 epochs=60 milestones=40/55
    weight_decay=1e-4``."""
    appearance: str = ""
    """Schedule of A; as ``teacher``."""
    student: str = ""
    """Schedule of S; as ``teacher``."""
    fused: str = _FUSED
    """Schedule of the fusion."""

    def __post_init__(self) -> None:
        LeakOptions.__post_init__(self)
        ScheduleOptions.__post_init__(self)
        refuse_unless_positive(self, "width", "frames", "size", "ratio", "mu")
        refuse_negative(self, "augmentations", "rep")
        if not math.isfinite(self.rep * self.mu):
            raise OptionError(f"rep={self.rep} and mu={self.mu}: give finite weights.")
        for name in STAGES:
            self.schedule(name)
        refuse_unless_share(self, "dropout")
        if self.ce == "fc" and self.has_student and not self.distils:
            raise OptionError(
                "ce=fc leaves all but the classifier to the distillation: rep=0 with ir=none trains none."
            )
        no_student, n = not self.has_student, f"network={self.network}"
        refuse_meaningless(
            self,
            (no_student, n, ("rep", "ce", "ir", "ir_norm", "taps", "mu")),
            (self.network != "fused", n, ("fusion", "ratio", "end_to_end")),
            (self.ir == "none", "ir=none", ("taps", "mu", "ir_norm")),
            (self.ir == "batch", "ir=batch, which compares pooled features", ("taps",)),
            (self.ir != "channel", f"ir={self.ir}", ("ir_norm",)),
            (self.fusion not in ("attention", "se"), f"fusion={self.fusion}", ("ratio",)),
            (self.fusion == "average", "fusion=average", ("end_to_end",)),
            (self.start == "maps", "start=maps", ("init", "init_flow", "augmentations")),
            (self.start == "frames", "start=frames", ("head", "width")),
            (self.head == "light", "head=light", ("taps",)),
            (self.head == "tail", "head=tail", ("width",)),
        )

    @property
    def has_student(self) -> bool:
        """Whether S is part of what answers."""
        return self.network in ("student", "fused", "three-stream")

    @property
    def distils(self) -> bool:
        """Whether the student's objective contains the teacher."""
        return self.has_student and (self.rep > 0 or self.ir != "none")

    @property
    def members(self) -> tuple[str, ...]:
        """The networks of which the answer is made, by the stage that trains each."""
        return {
            "fused": ("appearance", "student"),
            "student": ("student",),
            "rgb": ("appearance",),
            "flow": ("teacher",),
            "two-stream": ("appearance", "teacher"),
            "three-stream": ("appearance", "student", "teacher"),
        }[self.network]

    @property
    def last(self) -> str:
        """The stage whose network answers."""
        if self.network == "fused" and self.fusion != "average":
            return "fused"
        return self.members[0] if len(self.members) == 1 else "average"

    @property
    def compared(self) -> tuple[str, ...]:
        """Layers whose maps L_ir compares; ``head`` and ``taps`` are decided."""
        if not self.distils or self.ir in ("none", "batch"):
            return ()
        return (MAP,) if self.light else self.taps

    @property
    def light(self) -> bool:
        """Whether light heads are trained; ``head`` is decided."""
        return self.start == "maps" and self.head == "light"

    def schedule(self, name: str) -> Schedule:
        """See ``ScheduleOptions``; the light head has schedules of its own."""
        default = self.default_schedule(name)
        return Schedule.read(name, getattr(self, name), default).scaled(self.length, self.lr_factor)

    def default_schedule(self, name: str) -> str:
        """On top of which a stage's text is read; ``head`` is decided."""
        if name == "fused":
            return _FUSED
        return _LIGHT if self.light else _MARS

    def with_schedules(self) -> RelationOptions:
        """The options with the schedules written out that are left open, for the record of a run."""
        written: dict[str, Any] = {name: getattr(self, name) or self.default_schedule(name) for name in STAGES}
        return replace(self, **written)

    def shared(self, *names: str) -> dict[str, Any]:
        """``share_key`` of a stage that depends on these options, beside those of all stages."""
        schedules = {f.name for f in fields(ScheduleOptions)}
        labels = {f.name for f in fields(LeakOptions)} - {"allow_leak"}
        common = ("backbone", "start", "head", "width", "frames", "size", "augmentations", "mirror", "dropout")
        return {name: getattr(self, name) for name in (*sorted(schedules | labels), *common, *names)}

    def seen(self, name: str) -> Input:
        """The input ``rgb`` or ``flow``; flow is privileged unless it is part of the answer."""
        rgb, flow, layer = NETWORKS[self.backbone]
        network = rgb if name == "rgb" else flow
        when: Literal["always", "train"] = "train" if name == "flow" and "teacher" not in self.members else "always"
        settings = {"frames": self.T, "size": self.S, "views": VIEWS if self.mirror else VIEWS[:1]}
        if self.start == "maps":
            return Input(
                name=name,
                axes="CTHW",
                stream=f"{network}/*",
                when=when,
                extract=(f"{network}/{layer}",),
                settings=settings,
                mirror=self.mirror,
            )
        segment = Segment(
            frames=self.T,
            size=self.S,
            resize=112 if self.backbone == "resnext101" and self.S == 112 else None,
            augmentations=self.augmentations,
            mirror=self.mirror,
        )
        return Input(name=name, axes="THWC", stream=name, when=when, segment=segment, extract=(name,))

    @property
    def T(self) -> int:
        """Frames of a segment."""
        return self.frames or (16 if self.backbone == "resnext101" else 32)

    @property
    def S(self) -> int:
        """Side of the crop in pixels."""
        return self.size or (112 if self.backbone == "resnext101" else 224)
