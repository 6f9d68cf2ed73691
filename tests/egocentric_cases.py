"""Tiny inputs of the egocentric methods in memory, and what holds for every stage of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from memory_stream import MemoryStream, data_on

from kdcache import backbones
from kdcache.data.loader import feed, in_order
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.methods.contract import Data, Input, Split, Stage

CLIPS, T, SIZE = 3, 2, 64


def data_for(inputs: tuple[Input, ...], weights: str = "random:0") -> Data:
    """Random arrays for these inputs: two training clips and one to test on."""
    rng = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"TCHW": (256, SIZE // 16, SIZE // 16), "THW": (SIZE, SIZE)}
    streams: dict[str, MemoryStream] = {}
    for one in inputs:
        frames = one.segment.frames if one.segment else T
        if one.axes == "TCHW":
            array = torch.rand(CLIPS, 1, frames, *shapes["TCHW"], generator=rng)
        elif one.axes == "THW":
            array = 255 * torch.randint(2, (CLIPS, 1, frames, SIZE, SIZE), generator=rng, dtype=torch.uint8)
        else:
            channels = 3 if one.stream == "rgb" else 2 * one.segment.stack
            shape = (CLIPS, 1, frames, SIZE, SIZE, channels)
            array = torch.randint(256, shape, generator=rng, dtype=torch.uint8)
        streams[one.name] = MemoryStream(array)
    rows = {"train": [0, 1], "test": [2]}
    splits = {
        name: Split([str(i) for i in of], {"clip": torch.tensor(of)}, {"label": torch.tensor([i % 2 for i in of])})
        for name, of in rows.items()
    }
    networks = {"maps": "resnet34", "flow_maps": "resnet34-flow"}
    return data_on(
        streams,
        splits=splits,
        classes={"label": [0, 1]},
        roles=dict.fromkeys(streams, "clip"),
        backbone=lambda name: dict(backbones.build(networks[name], weights).state_dict()),
    )


def check_stage(stage: Stage, data: Data) -> Mapping[str, float]:
    """Gradients reach exactly what the stage trains, one step moves that and nothing else, buffers included.

    Returns the loss terms. A batch norm may move its statistics only where its parameters train.
    """
    assert stage.optimizer is not None
    trained = {id(p) for group in stage.optimizer.param_groups for p in group["params"]}
    (batch,) = feed(stage.train, in_order(stage.train, 8), data.device)
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    with frozen_but(stage.module, stage.optimizer):
        set_train_mode(stage.module, stage.optimizer)
        stage.module.zero_grad(set_to_none=True)  # earlier stages left gradients in what is frozen now
        terms = stage.losses(batch)
        torch.stack(list(terms.values())).sum().backward()
        for name, parameter in stage.module.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (id(parameter) in trained), f"{stage.name}: {name}"
        stage.optimizer.step()
    owners = {name.rpartition(".")[0] for name, p in stage.module.named_parameters() if id(p) in trained}
    for name, value in stage.module.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        statistics = leaf in ("running_mean", "running_var", "num_batches_tracked")
        moves = owner in owners if statistics else id(stage.module.get_parameter(name)) in trained
        assert torch.equal(value, before[name]) != moves, f"{stage.name}: {name}"
    stage.module.eval()
    for source in stage.eval_sets.values():
        (batch,) = feed(source, in_order(source, 8), data.device)
        with torch.no_grad():
            assert stage.predict(batch).shape == (1, 2)
    return {name: float(value.detach()) for name, value in terms.items()}


def options_of(kind: type[Any], **options: Any) -> Any:
    """Options at the tests' size, their target known."""
    return kind(**{"frames": T, "size": SIZE, "hidden": 16, "target": "label", "length": 1e-4, **options})
