"""Progressive motion representation distillation for egocentric activity recognition (Liu, Zhao, Xiao & Lam).

Three alike branches: ResNet-34, class activation attention, ConvLSTM (Ego-RNN's stream). At test time RGB frames alone
are read, by the RGB branch and by a hallucination branch that has learned motion from a flow branch.

Step 1  The RGB branch (on cached layer-3 maps) and the flow branch are trained apart by cross-entropy.
Step 2  Both are trained together; the flow branch multiplies into the RGB branch's residual units.
Step 3  The flow branch is frozen. The hallucination branch starts from its weights, sees RGB, receives its signals, and
        minimises

            L = γ L_M + (1 − γ) L_D                                                                      (3)
            L_M = ‖ 1/T Σ_t α_t (E_t^o − E_t^h) ‖²                                                       (1)
            L_D = λ CE(y, f_h(E_T^h)) + (1 − λ) CE(s, f_h(E_T^h)),   s = softmax(f_o(E_T^o) / δ)          (2)

Step 4  RGB (of step 2) and hallucination (of step 3) are trained together on RGB frames alone.

``light`` trains layer 4 and what follows in every step, on cached layer-3 maps of both modalities; connections are then
those of layer 4, and the hallucination branch stands on the RGB maps. [reconstructed]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from kdcache.backbones.egornn import EgoRNN
from kdcache.backbones.resnet import cross_modality
from kdcache.methods.contract import Batch, Data, Input, Predictor, Stage, reseed
from kdcache.methods.egocentric import branch, decide, imagenet
from kdcache.methods.egornn import rgb_stages
from kdcache.methods.labels import Clips
from kdcache.methods.pictures import Picture, StageLoader
from kdcache.methods.pmrd_networks import Hallucination, Signals, TwoBranch, embeddings, recorded
from kdcache.methods.pmrd_options import PMRDOptions
from kdcache.methods.pmrd_steps import Steps, alone, with_signals
from kdcache.methods.search import Knob

FIELDS = 3  # consecutive flow fields around each frame, 6 channels (Section III-B); centred on it [reconstructed]
BEFORE: dict[str, tuple[str, ...]] = {
    "rgb": ("rgb-1",),
    "flow": (),
    "two-branch": ("rgb-1", "rgb-2", "flow"),
    "hallucination": ("flow", "joint"),
    "pmrd": ("rgb-1", "rgb-2", "flow", "joint", "hallucination"),
}
"""Stages that trained the weights of what answers, before its own."""

Options = PMRDOptions


def _step_3(options: PMRDOptions) -> bool:
    return options.network in ("hallucination", "pmrd")


KNOBS = (
    Knob("lam", (0.3, 0.6, 0.9), (0.1, 0.0), (1.0,), lambda o: _step_3(o) and o.loss != "metric"),
    Knob("gamma", (0.25, 0.5, 0.75), (0.1, 0.0), (0.9, 1.0), lambda o: _step_3(o) and o.loss == "both"),
    Knob("delta", (1.0, 2.0, 4.0), (0.5,), (8.0, 16.0), lambda o: _step_3(o) and o.loss != "metric"),
    Knob("alpha_norm", ("mean1", "none"), applies=lambda o: _step_3(o) and o.loss == "metric" and o.temporal_attention),
    Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),
)
"""What is searched of each row. [reconstructed]"""


def resolve(options: PMRDOptions, data: Data) -> PMRDOptions:
    """The options with target and classifier of the backbone decided."""
    return decide(options, data, () if options.network == "flow" and not options.light else ("maps", "flow_maps"))


def inputs(options: PMRDOptions) -> tuple[Input, ...]:
    """Layer-3 maps for the RGB branch of step 1, RGB frames and stacks of flow for whole branches; ``light``: maps.

    Flow is read in training only, unless the flow branch itself answers."""
    n = options.network
    always = n in ("flow", "two-branch") or options.step3_signals == "flow"
    flow_answers: Literal["always", "train"] = "always" if always else "train"
    if options.light:
        flow = options.maps("flow_maps", "resnet34-flow/layer3", flow_answers)
        return {"rgb": (options.maps(),), "flow": (flow,)}.get(n, (options.maps(), flow))
    flow = options.seen("flow", options.flow, flow_answers, stack=FIELDS)
    if n == "rgb":
        return (options.maps(),)
    if n == "flow":  # starts from the network that made the maps
        return (flow,) if options.init is not None else (options.maps(when="train"), flow)
    return options.maps(when="train"), options.seen("rgb", "rgb"), flow


def stages(options: PMRDOptions, data: Data) -> Iterator[Stage]:
    """The four steps, as far as ``network`` needs them."""
    o, clips, steps = options, Clips(options, data), Steps(options)
    rgb: EgoRNN | None = None
    if o.network != "flow":
        rgb = yield from rgb_stages(o, data, clips)
    if o.network == "rgb":
        return

    reseed(data, "flow")
    flow = branch(o, data, 2 * FIELDS, imagenet(o, data, "flow_maps" if o.light else "maps"))
    yield steps.stage("flow", "flow_branch", flow, clips, (steps.flow,), _supervised(steps, flow), steps.trained(flow))
    if rgb is None:
        return

    reseed(data, "joint")
    teacher = TwoBranch(rgb, flow, o.unit, o.fusion).to(data.device)
    yield steps.two_branch("joint", teacher, clips, (steps.rgb, steps.flow))
    if o.network == "two-branch":
        return

    reseed(data, "hallucination")
    flow.eval().requires_grad_(False)
    received = o.step3_signals == "flow"
    student = Hallucination(branch(o, data), o.alpha_width, flow if received else None).to(data.device)
    start_hallucination(student.branch, flow)
    yield steps.stage(
        "hallucination",
        "hallucination",
        student,
        clips,
        (steps.rgb, steps.flow),
        lambda batch: distilled(steps, flow, student, batch),
        steps.of_hallucination(student),
        seen=(steps.rgb, steps.flow) if received else (steps.rgb,),
        predict=lambda batch: alone(steps, student, batch),
        diagnostics=lambda batch: _spread(steps, flow, student, batch),
    )
    if o.network == "hallucination":
        return

    reseed(data, "student")
    pair = TwoBranch(rgb, student.branch, o.unit, o.fusion).to(data.device)
    if pair.classify is not None and teacher.classify is not None:
        pair.classify.load_state_dict(teacher.classify.state_dict())
    yield steps.two_branch("student", pair, clips, (steps.rgb,))


def predictor(options: PMRDOptions, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    o, steps = options, Steps(options)
    fields: dict[str, Any]
    seen: tuple[str, ...]
    if o.network in ("rgb", "flow"):
        net = branch(o, data, 2 * FIELDS if o.network == "flow" else 3)
        seen = (steps.flow if o.network == "flow" else "maps",)
        stage = "flow" if o.network == "flow" else "rgb-2"
        fields = {"module": net, "predict": lambda batch: steps.run(net, batch, seen[0])["logits"]}
    elif o.network == "hallucination":
        received = o.step3_signals == "flow"
        source = branch(o, data, 2 * FIELDS) if received else None
        student = Hallucination(branch(o, data), o.alpha_width, source).to(data.device)
        stage, seen = "hallucination", (steps.rgb, steps.flow) if received else (steps.rgb,)
        fields = {"module": student, "predict": lambda batch: alone(steps, student, batch)}
    else:
        teacher = o.network == "two-branch"
        both = TwoBranch(branch(o, data), branch(o, data, 2 * FIELDS if teacher else 3), o.unit, o.fusion)
        stage, seen = ("joint", (steps.rgb, steps.flow)) if teacher else ("student", (steps.rgb,))
        both = both.to(data.device)
        fields = {"module": both, "predict": lambda batch: steps.pair(both, batch, seen)["logits"]}
    return Predictor(
        stage=stage,
        inputs={name: data.inputs[name] for name in seen},
        role="clip",
        batch_size=o.schedule("hallucination").batch_size,
        trained_in=BEFORE[o.network],
        **fields,
    )


def start_hallucination(hallucination: EgoRNN, flow: EgoRNN) -> None:
    """Step 3's start: every parameter and buffer of the flow branch; conv1 averaged over its 6 channels and repeated
    3 times [reconstructed]."""
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    of_resnet = {k.removeprefix("resnet."): v for k, v in state.items() if k.startswith("resnet.")}
    adapted = cross_modality(of_resnet, hallucination.resnet.channels)
    hallucination.load_state_dict({**state, **{f"resnet.{k}": v for k, v in adapted.items()}})


def l_m(E_o: Tensor, E_h: Tensor, alpha: Tensor, metric: Literal["outer", "inner"] = "outer") -> Tensor:
    """L_M (1), ``[B]``, of embeddings ``[B, T, d]`` and weights ``[B, T]``: the squared mean over time, summed over d;
    ``inner``: the mean over time of α_t ‖E_t^o − E_t^h‖²."""
    difference = E_o.float() - E_h.float()
    if metric == "inner":
        return (alpha * difference.square().sum(-1)).mean(1)
    return (alpha.unsqueeze(-1) * difference).mean(1).square().sum(-1)


def l_d(logits_h: Tensor, logits_o: Tensor, y: Tensor, lam: float, delta: float) -> Tensor:
    """L_D (2), ``[B]``: the flow branch's logits alone are softened, by δ, and there is no factor of δ²."""
    s = torch.softmax(logits_o.float() / delta, -1)
    soft = -(s * log_softmax(logits_h.float(), -1)).sum(-1)
    return lam * cross_entropy(logits_h.float(), y, reduction="none") + (1 - lam) * soft


def distilled(steps: Steps, flow: EgoRNN, student: Hallucination, batch: Batch) -> dict[str, Tensor]:
    """L (3) of a batch, as weighted terms; the flow branch's outputs and signals are without gradient."""
    o = steps.options
    of_flow, of_student = with_signals(steps, flow, student, batch)
    terms: dict[str, Tensor] = {}
    metric, distillation = {"metric": (1.0, 0.0), "distillation": (0.0, 1.0), "both": (o.gamma, 1 - o.gamma)}[o.loss]
    if o.loss != "distillation":
        E_o, E_h = embeddings(of_flow, o.embed), embeddings(of_student, o.embed)
        alpha = student.alpha(of_student, o.alpha_norm) if o.temporal_attention else torch.ones_like(E_h[..., 0])
        terms["L_M"] = metric * l_m(E_o, E_h, alpha.float(), o.metric).mean()
    if o.loss != "metric":
        of_logits = l_d(of_student["logits"], of_flow["logits"], batch["y"], o.lam, o.delta)
        terms["L_D"] = distillation * of_logits.mean()
    return terms


def explain(options: PMRDOptions, data: Data, predictor: Predictor, batch: Batch, load: StageLoader) -> list[Picture]:
    """α_t beside the spatial attention of each frame (Fig. 3), and the motion that is hallucinated: the energy of the
    signal of the first connection, of the hallucination branch and, where the batch has flow, of its teacher."""
    steps, found = Steps(options), list[Picture]()
    if options.network in ("rgb", "flow"):
        of_branch = steps.run(predictor.module, batch, next(iter(predictor.inputs)))  # type: ignore[arg-type]
        return [Picture(title="CAM", values=of_branch["attention"][0].float(), over=True, note=options.network)]
    if isinstance(predictor.module, TwoBranch):
        seen = tuple(predictor.inputs)
        attention = steps.pair(predictor.module, batch, seen)["attention"][0].float()
        found.append(Picture(title="CAM", values=attention, over=True, note="RGB branch"))
    if options.network == "two-branch":
        return found
    student: nn.Module | None = predictor.module
    if not isinstance(student, Hallucination):  # α_t is of step 3
        student = load("hallucination", Hallucination(branch(options, data), options.alpha_width).to(data.device))
    answering = predictor.module.get_submodule("motion" if isinstance(predictor.module, TwoBranch) else "branch")
    assert isinstance(answering, EgoRNN)
    signals: dict[str, Signals] = {"hallucinated": {}}
    outputs = steps.run(answering, batch, steps.rgb, recorded(signals["hallucinated"], options.unit))
    found.append(Picture(title="CAM", values=outputs["attention"][0].float(), over=True, note="hallucination branch"))
    if isinstance(student, Hallucination) and options.temporal_attention and options.loss != "distillation":
        alpha = student.alpha(steps.run(student.branch, batch, steps.rgb), options.alpha_norm)[0]
        found.append(Picture(title="alpha_t", values=alpha, note=f"weights of L_M in step 3, {options.alpha_norm}"))
    if steps.flow in batch:
        both = TwoBranch(branch(options, data), branch(options, data, 2 * FIELDS), options.unit, options.fusion)
        teacher = load("joint", both.to(data.device))
        if isinstance(teacher, TwoBranch):
            signals["of flow"] = {}
            steps.run(teacher.motion, batch, steps.flow, recorded(signals["of flow"], options.unit))
    energy = {what: next(iter(s.values())).float().square().mean(1).sqrt() for what, s in signals.items()}
    note = f"energy of the signal into {next(iter(signals['hallucinated']))}"
    # Each on a scale of its own: the two branches' features are of different sizes.
    return found + [Picture(title=f"motion {w}", values=e, note=note) for w, e in energy.items()]


def _supervised(steps: Steps, flow: EgoRNN) -> Callable[[Batch], dict[str, Tensor]]:
    """Step 1's cross-entropy of the flow branch."""
    return lambda batch: {"CE": cross_entropy(steps.run(flow, batch, steps.flow)["logits"].float(), batch["y"])}


def _spread(steps: Steps, flow: EgoRNN, student: Hallucination, batch: Batch) -> dict[str, Tensor]:
    """The least, mean and largest α_t: whether the weights have collapsed."""
    if not steps.options.temporal_attention or steps.options.loss == "distillation":
        return {}
    alpha = student.alpha(with_signals(steps, flow, student, batch)[1], steps.options.alpha_norm)
    return {"alpha_min": alpha.min(), "alpha_mean": alpha.mean(), "alpha_max": alpha.max()}
