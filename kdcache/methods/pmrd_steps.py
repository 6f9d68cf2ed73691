"""What PMRD's four steps have in common: what a branch is run on, what is trained of it, how pairs are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcache.backbones.egornn import EgoRNN
from kdcache.backbones.resnet import Unit
from kdcache.methods.contract import Batch, Outputs, Stage
from kdcache.methods.egocentric import from_layer4, whole
from kdcache.methods.labels import Clips
from kdcache.methods.pmrd_networks import Hallucination, Signals, TwoBranch, multiplied, recorded
from kdcache.methods.pmrd_options import PMRDOptions


class Steps:
    """Where the inputs of a step come from, and what all its stages have in common."""

    def __init__(self, options: PMRDOptions) -> None:
        self.options = options
        self.rgb, self.flow = ("maps", "flow_maps") if options.light else ("rgb", "flow")

    def run(self, net: EgoRNN, batch: Batch, name: str, unit: Unit | None = None) -> Outputs:
        """One branch on one input: maps from layer 4 on, frames or flow from the beginning."""
        if name in ("maps", "flow_maps"):
            return net(batch[name], "layer4", unit)  # type: ignore[no-any-return]
        return net(net.prepare(batch[name]), "images", unit)  # type: ignore[no-any-return]

    def pair(self, both: TwoBranch, batch: Batch, seen: tuple[str, ...]) -> Outputs:
        """Two branches on two inputs, or on one."""
        rgb, motion = batch[seen[0]], batch[seen[-1]]
        if self.options.light:
            return both(rgb, motion, "layer4")  # type: ignore[no-any-return]
        return both(both.rgb.prepare(rgb), both.motion.prepare(motion))  # type: ignore[no-any-return]

    def trained(self, net: EgoRNN) -> list[torch.nn.Parameter]:
        """What a step trains of a branch."""
        return list(from_layer4(net) if self.options.light else whole(net))

    def of_hallucination(self, student: Hallucination) -> list[torch.nn.Parameter]:
        """What the loss of step 3 reaches: L_M no classifier, and the perceptron of α_t only where there is L_M."""
        o, moved = self.options, self.trained(student.branch)
        if o.loss == "metric":
            classifier = {id(p) for p in student.branch.classify.parameters()}
            moved = [p for p in moved if id(p) not in classifier]
        if o.temporal_attention and o.loss != "distillation":
            moved += student.attend.parameters()
        return moved

    def stage(
        self,
        name: str,
        schedule: str,
        module: torch.nn.Module,
        clips: Clips,
        read: tuple[str, ...],
        losses: Callable[[Batch], dict[str, Tensor]],
        parameters: list[torch.nn.Parameter],
        *,
        seen: tuple[str, ...] | None = None,
        predict: Callable[[Batch], Tensor] | None = None,
        **more: Any,
    ) -> Stage:
        """A stage that reads these inputs, and is scored on ``seen``."""
        seen = read if seen is None else seen
        answer = predict or (lambda batch: self.run(module, batch, seen[0])["logits"])  # type: ignore[arg-type]
        o = self.options
        more = o.stage_fields | {"share_key": o.share_key(name)} | more
        before = ("maps",) if name == "flow" else (self.rgb, self.flow, "maps")
        more["share_inputs"] = tuple(n for n in before if n in clips.data.inputs and not (o.light and name == "flow"))
        train, held_out = clips.train(*read), clips.held_out(*seen)
        return o.schedule(schedule).stage(
            name, module, train, losses, held_out, parameters=parameters, predict=answer, **more
        )

    def two_branch(self, name: str, both: TwoBranch, clips: Clips, seen: tuple[str, ...]) -> Stage:
        """Steps 2 and 4: each branch's cross-entropy, and that of the classifier on both where there is one."""
        slow = {id(p) for p in both.motion.resnet.parameters()}
        moved = [*self.trained(both.rgb), *self.trained(both.motion)]
        moved += [] if both.classify is None else both.classify.parameters()

        def losses(batch: Batch) -> dict[str, Tensor]:
            outputs = self.pair(both, batch, seen)
            names = ["rgb", "motion"] + ["logits"] * (both.classify is not None)
            return {f"CE_{n}".replace("logits", "both"): cross_entropy(outputs[n].float(), batch["y"]) for n in names}

        return self.stage(
            name,
            name,
            both,
            clips,
            seen,
            losses,
            [p for p in moved if id(p) not in slow],
            predict=lambda batch: self.pair(both, batch, seen)["logits"],
            slower={self.options.source_factor: [p for p in moved if id(p) in slow]},
        )


def with_signals(steps: Steps, flow: EgoRNN, student: Hallucination, batch: Batch) -> tuple[Outputs, Outputs]:
    """The frozen flow branch, and the hallucination branch that receives its signals."""
    signals: Signals = {}
    with torch.no_grad():
        of_flow = steps.run(flow, batch, steps.flow, recorded(signals, steps.options.unit))
    return of_flow, steps.run(student.branch, batch, steps.rgb, multiplied(signals))


def alone(steps: Steps, student: Hallucination, batch: Batch) -> Tensor:
    """The hallucination branch's answer in step 3, with s_l = 1 or with the flow branch's signals."""
    if student.flow is not None:
        return with_signals(steps, student.flow, student, batch)[1]["logits"]
    return steps.run(student.branch, batch, steps.rgb)["logits"]
