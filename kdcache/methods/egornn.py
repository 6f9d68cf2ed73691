"""Ego-RNN (Sudhakaran & Lanz, "Attention is all we need", BMVC 2018), and the two-stream networks it is compared with.

- ``rgb``: ResNet-34, class activation attention, ConvLSTM. Stage 1 trains the ConvLSTM and the classifier, stage 2 also
  the convolutions of layer 4 and the ImageNet classifier; both read cached layer-3 maps.
- ``flow``: a plain ResNet-34 on stacks of 5 flow fields; trained on one at random, tested on the mean of several.
- ``average``: the mean of both networks' scores; ``joint``: both descriptors to one classifier, trained on with the
  last layers of both.
- ``two-stream`` (Simonyan & Zisserman, NIPS 2014): a ResNet-34 on one random frame, and ``flow``.
- ``tsn`` (Wang et al., TPAMI 2019): both trained on the mean of the scores of several snippets.

Schedules and what each stage trains are those of Ego-RNN's code (swathikirans/ego-rnn), TSN's of its code.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdcache.backbones.egornn import EgoRNN, EgoRNNJoint, snippet
from kdcache.backbones.resnet import ResNet34
from kdcache.errors import OptionError
from kdcache.methods.contract import Batch, Data, Input, Outputs, Predictor, Stage, reseed
from kdcache.methods.egocentric import (
    branch,
    cam_weight,
    decide,
    imagenet,
    layer4_convolutions,
    on_maps,
    recurrence,
)
from kdcache.methods.egornn_options import EgoRNNOptions, RGBStreamOptions
from kdcache.methods.labels import Clips
from kdcache.methods.pictures import Picture, StageLoader
from kdcache.methods.search import Knob

STACK = 5  # flow fields that the flow network sees at once


def rgb_stages(
    options: RGBStreamOptions, data: Data, clips: Clips, attention: bool = True
) -> Generator[Stage, None, EgoRNN]:
    """The RGB stream on layer-3 maps: 1. ConvLSTM and classifier; 2. also the convolutions of layer 4 and the weight of
    the ImageNet classifier. Batch norms stay as they are. Returns the trained network."""
    reseed(data, "rgb")
    net = branch(options, data, start=imagenet(options, data), attention=attention)
    moved = {"rgb-1": [*recurrence(net)]}
    moved["rgb-2"] = [*moved["rgb-1"], *layer4_convolutions(net), *cam_weight(net)]

    def losses(batch: Batch) -> dict[str, Tensor]:
        return {"CE": cross_entropy(on_maps(net, batch)["logits"].float(), batch["y"])}

    def predict(batch: Batch) -> Tensor:
        return on_maps(net, batch)["logits"]

    for name, schedule, known in (("rgb-1", "rgb_1", ["rgb_1"]), ("rgb-2", "rgb_2", ["rgb_1", "rgb_2"])):
        yield options.schedule(schedule).stage(
            name,
            net,
            clips.train("maps"),
            losses,
            clips.held_out("maps"),
            parameters=moved[name],
            predict=predict,
            share_key={**options.shared(*known), "attention": attention},
            **options.stage_fields,
        )
    return net


BEFORE: dict[str, tuple[str, ...]] = {
    "rgb": ("rgb-1",),
    "flow": (),
    "average": ("rgb-1", "rgb-2", "flow"),
    "joint": ("rgb-1", "rgb-2", "flow"),
    "two-stream": ("frame", "flow"),
    "tsn": ("frame", "flow"),
}
"""Stages that trained the weights of what answers, before its own."""

Options = EgoRNNOptions
KNOBS = (Knob("dropout", (0.0, 0.25, 0.5, 0.75), (), (0.9,), of_objective=False),)
"""What is searched of each row. [reconstructed]"""


def inputs(options: EgoRNNOptions) -> tuple[Input, ...]:
    """Layer-3 maps for the RGB stream (the others start from the network that made them, unless ``init`` says which),
    flow for the flow network, frames for ``two-stream`` and ``tsn``.

    The joint stage reads a stack of flow beside the maps, in the same view."""
    n, joint = options.network, options.network == "joint"
    of_maps = n in ("rgb", "average", "joint")
    found = [options.maps()] if of_maps else [options.maps(when="train")] if options.init is None else []
    if n in ("two-stream", "tsn"):
        found.append(options.seen("rgb", "rgb", frames=options.snippets))
    if n != "rgb":
        when: Literal["always", "train"] = "train" if joint or n == "average" else "always"
        found.append(options.seen("flow", options.flow, when, stack=STACK, frames=options.snippets))
    if joint or n == "average":  # what is tested on sees both in the centre view
        found.append(options.seen("flow_beside", options.flow, stack=STACK, beside=True))
    return tuple(found)


def resolve(options: EgoRNNOptions, data: Data) -> EgoRNNOptions:
    """The options with target and classifier of the backbone decided."""
    return decide(options, data, [one.name for one in inputs(options) if one.name == "maps" and one.when == "always"])


def stages(options: EgoRNNOptions, data: Data) -> Iterator[Stage]:
    """The streams that the network is made of, then what joins them."""
    clips, o = Clips(options, data), options
    rgb: nn.Module | None = None
    if o.network in ("rgb", "average", "joint"):
        rgb = yield from rgb_stages(o, data, clips, o.attention)
    elif "rgb" in data.inputs:
        rgb = _snippets(o, data, 3, "frame", imagenet(o, data))
        yield _snippet_stage(o, clips, "frame", rgb, "rgb", "spatial")
    if "flow" not in data.inputs:
        return
    flow = _snippets(o, data, 2 * STACK, "flow", imagenet(o, data))
    yield _snippet_stage(o, clips, "flow", flow, "flow", "flow_net")
    if rgb is None:
        return

    both = _both(o, data)
    if isinstance(both, EgoRNNJoint):
        both.rgb.load_state_dict(rgb.state_dict())
        both.flow.load_state_dict(flow.state_dict())
        yield _joint_stage(o, clips, both)
        return
    both.load_state_dict({**_under("rgb", rgb), **_under("flow", flow)})
    yield Stage(
        name="average",
        module=both,
        train=clips.train(*_answering(o)),
        losses=lambda batch: {},
        predict=_predict(o, both),
        epochs=0,
        batch_size=o.schedule("flow_net").batch_size,
        eval_sets=clips.held_out(*_answering(o)),
    )


def predictor(options: EgoRNNOptions, data: Data) -> Predictor:
    """The untrained network that answers, the stage that trains it, and what it sees."""
    module: nn.Module
    if options.network == "rgb":
        stage, module = "rgb-2", branch(options, data, attention=options.attention)
    elif options.network == "flow":
        stage, module = "flow", _snippets(options, data, 2 * STACK, "flow")
    else:
        stage, module = "joint" if options.network == "joint" else "average", _both(options, data)
    inputs = {name: data.inputs[name] for name in _answering(options)}
    return Predictor(
        stage=stage,
        module=module,
        predict=_predict(options, module),
        inputs=inputs,
        role="clip",
        batch_size=options.schedule("flow_net").batch_size,
        trained_in=BEFORE[options.network],
    )


def explain(options: EgoRNNOptions, data: Data, predictor: Predictor, batch: Batch, load: StageLoader) -> list[Picture]:
    """Where the RGB stream looks, frame by frame."""
    if "maps" not in batch:
        raise OptionError(f"network={options.network} has no attention to draw: use a run of rgb, average or joint.")
    net = predictor.module if options.network == "rgb" else predictor.module.get_submodule("rgb")
    attention = on_maps(net, batch)["attention"][0]  # type: ignore[arg-type]
    return [Picture(title="CAM", values=attention, over=True, note="attention of each frame")]


def _answering(options: EgoRNNOptions) -> tuple[str, ...]:
    """Names of the inputs that the answer is made of."""
    return tuple(one.name for one in inputs(options) if one.when == "always")


def _predict(options: EgoRNNOptions, module: nn.Module) -> Any:
    """``predict`` of the network that answers."""

    def predict(batch: Batch) -> Tensor:
        if options.network == "rgb":
            return on_maps(module, batch)["logits"]  # type: ignore[arg-type]
        if options.network == "flow":
            return _mean_scores(module, batch["flow"])["logits"]
        if isinstance(module, EgoRNNJoint):
            return _joint(options, module, batch)["logits"]
        rgb, flow = module.get_submodule("rgb"), module.get_submodule("flow")
        if "maps" in batch:
            scores = on_maps(rgb, batch)["logits"]  # type: ignore[arg-type]
            of_flow = _mean_scores(flow, _spread(options, batch["flow_beside"]))["logits"]
        else:
            scores, of_flow = _mean_scores(rgb, batch["rgb"])["logits"], _mean_scores(flow, batch["flow"])["logits"]
        return (scores + options.flow_weight * of_flow) / (1 + options.flow_weight)

    return predict


def _both(options: EgoRNNOptions, data: Data) -> nn.Module:
    """Untrained: the joint network, or two networks beside each other under ``rgb`` and ``flow``."""
    classes = len(data.classes[options.target])
    if options.network == "joint":
        joint = EgoRNNJoint(
            classes, imagenet_classes=options.cam_classes, flow_channels=2 * STACK, hidden=options.hidden
        )
        joint.rgb.dropout.p = options.dropout
        return joint.to(data.device)
    of_maps = options.network == "average"
    rgb = branch(options, data, attention=options.attention) if of_maps else _snippets(options, data, 3, "frame")
    return nn.ModuleDict({"rgb": rgb, "flow": _snippets(options, data, 2 * STACK, "flow")})


def _snippets(
    options: EgoRNNOptions, data: Data, channels: int, what: str, start: dict[str, Tensor] | None = None
) -> ResNet34:
    """A plain ResNet-34 with a classifier of the clips' classes, from ImageNet's weights where they are given."""
    reseed(data, what)
    net = ResNet34(len(data.classes[options.target]), channels)
    if start is not None:
        net.load_state_dict({k: v for k, v in net.adapt(start).items() if not k.startswith("fc.")}, strict=False)
    return net.to(data.device)


def _snippet_stage(options: EgoRNNOptions, clips: Clips, name: str, net: ResNet34, seen: str, schedule: str) -> Stage:
    """All of a plain ResNet-34, on one random snippet of each clip, or (TSN) on the mean score of all."""

    def losses(batch: Batch) -> dict[str, Tensor]:
        x = batch[seen]
        if options.network != "tsn":
            x = x[torch.arange(len(x)), torch.randint(x.shape[1], (len(x),))][:, None]
        return {"CE": cross_entropy(_mean_scores(net, x, options.snippet_dropout)["logits"].float(), batch["y"])}

    return options.schedule(schedule).stage(
        name,
        net,
        clips.train(seen),
        losses,
        clips.held_out(seen),
        parameters=net.parameters(),
        predict=lambda batch: _mean_scores(net, batch[seen])["logits"],
        share_key={**options.shared("snippets", "snippet_dropout", schedule), "tsn": options.network == "tsn"},
        share_inputs=tuple(name for name in ("maps",) if name in clips.data.inputs),
        **options.stage_fields,
    )


def _joint_stage(options: EgoRNNOptions, clips: Clips, both: EgoRNNJoint) -> Stage:
    """The joint classifier, the RGB stream as in its second stage, and the flow network's layer 4 at a lower rate; its
    batch norms are in training mode, those of the RGB stream are not. [ego-rnn]"""
    rgb = both.rgb  # whose own classifier is not used any more
    moved = [*both.classify.parameters(), *rgb.lstm.parameters(), *layer4_convolutions(rgb), *cam_weight(rgb)]

    def losses(batch: Batch) -> dict[str, Tensor]:
        stack = torch.randint(batch["flow_beside"].shape[1], (len(batch["y"]),))
        return {"CE": cross_entropy(_joint(options, both, batch, stack)["logits"].float(), batch["y"])}

    return options.schedule("joint").stage(
        "joint",
        both,
        clips.train("maps", "flow_beside"),
        losses,
        clips.held_out("maps", "flow_beside"),
        parameters=moved,
        slower={0.01: both.flow.get_submodule("layer4").parameters()},
        predict=_predict(options, both),
        **options.stage_fields,
    )


def _joint(options: EgoRNNOptions, both: EgoRNNJoint, batch: Batch, stack: Tensor | None = None) -> Outputs:
    """The joint network on maps and one stack of flow a clip; without ``stack`` on the mean descriptor of several."""
    flow = batch["flow_beside"]
    if stack is not None:
        flow = flow[torch.arange(len(flow)), stack][:, None]
    else:
        flow = _spread(options, flow)
    of_flow = _mean_scores(both.flow, flow)["descriptor"]
    of_rgb = on_maps(both.rgb, batch)["descriptor"]
    return {"logits": both.classify(both.dropout(torch.cat([of_flow, of_rgb], 1)))}


def _spread(options: EgoRNNOptions, stacks: Tensor) -> Tensor:
    """Of the stacks around all T frames the ``snippets`` that are tested, evenly spread."""
    return stacks[:, torch.linspace(0, stacks.shape[1] - 1, min(options.snippets, stacks.shape[1])).round().long()]


def _mean_scores(net: nn.Module, x: Tensor, p: float = 0.0) -> Outputs:
    """Snippets uint8 ``[B, n, S, S, C]`` → mean ``logits`` ``[B, K]`` and mean ``descriptor`` ``[B, 512]``."""
    assert isinstance(net, ResNet34)
    outputs = snippet(net, net.prepare(x).flatten(0, 1), p)
    return {name: each.reshape(*x.shape[:2], -1).mean(1) for name, each in outputs.items()}


def _under(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{k}": v for k, v in module.state_dict().items()}
