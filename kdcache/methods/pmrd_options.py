"""Options of PMRD, and which of them decide the result of each of its stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdcache.errors import OptionError
from kdcache.methods.egornn_options import RGBStreamOptions
from kdcache.methods.options import refuse_meaningless, refuse_unless_positive

SCHEDULES = ("rgb_1", "rgb_2", "flow_branch", "joint", "hallucination", "student")
DECIDES = {
    "rgb-2": ("rgb_1", "rgb_2"),
    "flow": ("flow_branch", "light"),
    "joint": ("joint", "unit", "fusion", "source_factor"),
    "hallucination": (
        "hallucination", "loss", "temporal_attention", "alpha_norm", "alpha_width", "metric", "embed", "lam", "gamma",
        "delta", "step3_signals",
    ),
    "student": ("student",),
}  # fmt: skip
"""Options that decide the result of a stage, beside those of the stages before it."""


@dataclass(frozen=True, kw_only=True)
class PMRDOptions(RGBStreamOptions):
    """Everything that can be set. Defaults are the paper's, or ``[reconstructed]`` where it gives none."""

    network: Literal["rgb", "flow", "two-branch", "hallucination", "pmrd"] = "pmrd"
    """What answers, after the steps that it needs: a branch of step 1, both of step 2, step 3's, or step 4's (all)."""
    loss: Literal["metric", "distillation", "both"] = "both"
    """Of step 3: L_M (1), L_D (2) or both (3)."""
    temporal_attention: bool = True
    """Off: α_t = 1 [reconstructed]."""
    alpha_norm: Literal["mean1", "none"] = "mean1"
    """``none``: α_t as printed, which L_M alone drives to 0; ``mean1``: they add up to T. [reconstructed]"""
    alpha_width: int = 128
    """Width of the perceptron that gives α_t. [reconstructed]"""
    metric: Literal["outer", "inner"] = "outer"
    """``outer``: the norm of the mean over time, as printed, in which errors of opposite sign cancel; ``inner``: the
    mean over time of the norms."""
    embed: Literal["vector", "map"] = "vector"
    """E_t: the average of the cell state, or the whole of it. [reconstructed]"""
    lam: float = 0.6
    """λ, the weight of the labels in L_D."""
    gamma: float = 0.5
    """γ, the weight of L_M in L."""
    delta: float = 2.0
    """δ, the temperature of the flow branch's soft labels. [reconstructed]"""
    fusion: Literal["avg_logits", "concat"] = "avg_logits"
    """How two branches answer: the mean of their logits, each with its own cross-entropy [multiplier nets' code], or a
    third classifier on both descriptors besides [Ego-RNN's code]. [reconstructed]"""
    step3_signals: Literal["none", "flow"] = "none"
    """What the hallucination branch receives when it answers alone (``network=hallucination``): nothing, so that RGB is
    enough; or the flow branch's signals as in training, which reads flow. [reconstructed]"""
    unit: int = 1
    """Which residual unit of each layer the connections enter and leave, 0 or 1. [reconstructed]"""
    light: bool = False
    """Train from layer 4 on in every step, on cached maps."""
    source_factor: float = 0.01
    """Factor of the learning rate at which the motion branch's ResNet moves in steps 2 and 4. [Ego-RNN's code,
    for layer 4 of its flow network]"""
    flow_branch: str = "sgd lr=1e-2 epochs=750 milestones=150/300/500 gamma=0.5 weight_decay=5e-4"
    """Schedule of the flow branch in step 1. [Ego-RNN's flow network]"""
    joint: str = "sgd lr=1e-2 epochs=250 decay=0.99 weight_decay=5e-4"
    """Schedule of step 2. [Ego-RNN's joint stage]"""
    hallucination: str = "sgd lr=1e-3 epochs=750 milestones=150/300/500 gamma=0.5 weight_decay=5e-4"
    """Schedule of step 3; rate and length are the paper's, decay and weight decay are [reconstructed]."""
    student: str = "sgd lr=1e-2 epochs=250 decay=0.99 weight_decay=5e-4"
    """Schedule of step 4, as step 2. [reconstructed]"""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless_positive(self, "delta", "alpha_width", "source_factor")
        for name in SCHEDULES:
            self.schedule(name)
        if self.step3_signals != "none" and self.network != "hallucination":
            raise OptionError(f"step3_signals={self.step3_signals} is for network=hallucination, not {self.network}.")
        of_l_m = ("temporal_attention", "alpha_norm", "alpha_width", "metric", "embed")
        of_step_3, n = ("loss", *of_l_m, "lam", "gamma", "delta"), f"network={self.network}"
        refuse_meaningless(
            self,
            (self.network in ("rgb", "flow", "two-branch"), n, of_step_3),
            (self.network in ("rgb", "flow"), n, ("fusion", "source_factor")),
            (self.loss == "metric", "loss=metric", ("lam", "gamma", "delta")),
            (self.loss == "distillation", "loss=distillation", (*of_l_m, "gamma")),
            (not self.temporal_attention, "temporal_attention=false", ("alpha_norm", "alpha_width")),
        )
        if self.light and self.flow != "flow":
            raise OptionError(
                f"flow={self.flow} is not read with light=true, which reads resnet34-flow/layer3: drop it."
            )
        for name in ("lam", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name}={getattr(self, name)}: give a weight between 0 and 1.")
        if self.unit not in (0, 1):
            raise OptionError(f"unit={self.unit}: connections enter the first or second unit of a layer, 0 or 1.")

    def share_key(self, stage: str) -> dict[str, Any]:
        """``Stage.share_key``: everything that decides the result of a stage."""
        names = list(DECIDES)
        return self.shared(*(option for n in names[: names.index(stage) + 1] for option in DECIDES[n]))
