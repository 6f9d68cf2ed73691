"""What a stage does not train stays as it is: no gradient, no running statistics, no dropout."""

from __future__ import annotations

import pytest
import torch
from memory_stream import MemoryStream, data_on
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD

from kdcache.engine import loop
from kdcache.engine.freezing import frozen_but, set_train_mode
from kdcache.engine.log import Log
from kdcache.engine.loop import fit_stage
from kdcache.errors import OptionError
from kdcache.methods.contract import BatchSource, Stage, predict_with
from kdcache.workers import Interrupts


class Part(nn.Module):
    """A layer with everything that has a mode of its own."""

    def __init__(self, features=4):
        super().__init__()
        self.layer, self.bn, self.drop = nn.Linear(features, features), nn.BatchNorm1d(features), nn.Dropout(0.5)
        self.plain = nn.BatchNorm1d(features, affine=False)

    def forward(self, x):
        return self.plain(self.drop(self.bn(self.layer(x))))


class Two(nn.Module):
    """A backbone that may stay frozen, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head, self.drop = Part(), Part(), nn.Dropout(0.5)
        self.classify = nn.Linear(4, 3)

    def forward(self, x):
        return {"logits": self.classify(self.drop(self.head(self.backbone(x))))}


def modes(module):
    return {name: part.training for name, part in module.named_modules() if name}


def test_parts_without_a_trained_parameter_stay_in_evaluation_mode():
    network = Two()
    network.eval()
    set_train_mode(network, SGD([*network.head.parameters(), *network.classify.parameters()], 0.1))
    found = modes(network)
    assert network.training
    assert {name for name, on in found.items() if not on} == {
        "backbone",
        *(f"backbone.{part}" for part in ("layer", "bn", "drop", "plain")),
    }
    set_train_mode(network, SGD(network.parameters(), 0.1))
    assert all(modes(network).values())


def test_a_frozen_batch_norm_keeps_its_statistics_within_a_layer_that_is_trained():
    network = Two()
    set_train_mode(network, SGD(network.backbone.layer.parameters(), 0.1))
    found = modes(network)
    assert found["backbone"]
    assert found["backbone.layer"]
    assert found["backbone.drop"]  # follows the part around it
    assert found["backbone.plain"]  # without parameters of its own, too
    assert not found["backbone.bn"]
    assert not found["head"]
    assert not found["head.drop"]
    assert found["drop"]  # of the whole network, which is trained in part
    before = network.backbone.bn.running_mean.clone()
    network(torch.randn(8, 4))
    assert torch.equal(network.backbone.bn.running_mean, before)
    assert network.backbone.plain.running_mean.abs().sum() > 0


def test_frozen_parameters_take_no_gradient_and_are_as_before_afterwards():
    network = Two()
    network.backbone.bn.weight.requires_grad_(False)  # as its maker wanted it
    before = {name: p.requires_grad for name, p in network.named_parameters()}
    optimizer = SGD([{"params": [network.classify.weight]}, {"params": [network.backbone.bn.weight]}], 0.1)
    with frozen_but(network, optimizer):
        network(torch.randn(8, 4))["logits"].sum().backward()
        took = {name for name, p in network.named_parameters() if p.grad is not None}
        assert took == {"classify.weight", "backbone.bn.weight"}  # through the frozen layers between them
    assert {name: p.requires_grad for name, p in network.named_parameters()} == before
    with pytest.raises(RuntimeError, match="on purpose"), frozen_but(network, optimizer):
        raise RuntimeError("on purpose")
    assert {name: p.requires_grad for name, p in network.named_parameters()} == before


def stage_of(network, parameters, name="s", **settings):
    stream = MemoryStream(torch.randn(12, 1, 4, generator=torch.Generator().manual_seed(1)))
    source = BatchSource({"x": (stream, torch.arange(12))}, {"y": torch.arange(12) % 3})

    def losses(batch):
        return {"L": nn.functional.cross_entropy(network(batch["x"])["logits"], batch["y"])}

    given = {"epochs": 2, "batch_size": 4, "eval_sets": {"validation": source}} | settings
    optimizer = SGD(parameters, 0.5)
    return Stage(
        name=name,
        module=network,
        train=source,
        losses=losses,
        predict=predict_with(network),
        optimizer=optimizer,
        **given,
    )


def fit(folder, stage, save_every=30.0):
    return fit_stage(stage, data_on({}), folder / stage.name, Log(folder, bars=False), Interrupts(), save_every, False)


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_stage_moves_its_part_alone(tmp_path):
    network = Two()
    before = state_of(network)
    fit(tmp_path, stage_of(network, [*network.head.parameters(), *network.classify.parameters()]))
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("backbone") for name in changed)
    assert {"head.layer.weight", "head.bn.running_mean", "classify.bias"} <= changed
    assert all(p.requires_grad for p in network.parameters())


def two_stages(folder, network, save_every=30.0):
    """First the head, then the backbone, with the gradient clipped hard."""
    head = [*network.head.parameters(), *network.classify.parameters()]
    fit(folder, stage_of(network, head, "head"), save_every)
    backbone = network.backbone.parameters()
    return fit(folder, stage_of(network, backbone, "backbone", grad_clip=0.01), save_every)


def test_gradients_left_by_an_earlier_stage_do_not_count_when_clipping(tmp_path):
    """Else a run that is continued in its second stage, where none are left, would end elsewhere."""
    whole, again = Two(), Two()
    two_stages(tmp_path / "run", whole)
    for path in (tmp_path / "run" / "backbone").iterdir():
        path.unlink()
    two_stages(tmp_path / "run", again)  # the head is loaded, the backbone trained again
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


class Crash(RuntimeError):
    pass


@pytest.mark.parametrize("step", [4, 7, 10])
def test_partly_frozen_training_goes_on_to_the_bit(tmp_path, monkeypatch, step):
    two_stages(tmp_path / "whole", Two(), 0.0)
    taken, original = iter(range(1, 100)), loop._step

    def stopping(run, batch):
        original(run, batch)
        if next(taken) == step:
            raise Crash

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Crash):
        two_stages(tmp_path / "run", Two(), 0.0)
    monkeypatch.undo()
    two_stages(tmp_path / "run", Two(), 0.0)
    for stage in ("head", "backbone"):
        left, right = (load_file(tmp_path / run / stage / "last.safetensors") for run in ("whole", "run"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_stage_without_a_schedule_keeps_its_rate(tmp_path):
    network = Two()
    summary = fit(tmp_path, stage_of(network, network.parameters(), epochs=3))
    assert [row["lr"] for row in summary["rows"]] == [0.5] * 3


def test_a_plateau_needs_validation_clips(tmp_path):
    network = Two()
    stage = stage_of(network, network.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(stage.optimizer, "max")
    test = stage.eval_sets["validation"]
    stage = stage_of(network, network.parameters(), scheduler=plateau, eval_sets={"test": test})
    with pytest.raises(OptionError, match="its learning rate follows validation clips, and there are none"):
        fit(tmp_path, stage)
    assert not (tmp_path / "s").exists()
