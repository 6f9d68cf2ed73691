"""PMRD: its connections, losses and weights by hand, and what each step trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from egocentric_cases import T, check_stage, data_for, options_of
from torch.nn.functional import relu

from kdcache.backbones.egornn import EgoRNN
from kdcache.errors import OptionError
from kdcache.methods import pmrd
from kdcache.methods.pmrd_networks import Hallucination, TwoBranch, embeddings, multiplied, recorded
from kdcache.runs import presets

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> EgoRNN:
    torch.manual_seed(0)
    return EgoRNN(2, imagenet_classes=5).eval()


def test_a_signal_of_one_changes_nothing_and_of_zero_leaves_the_skip_path(net):
    x = torch.rand(1, T, 3, 64, 64)
    with torch.inference_mode():
        signals: dict[str, torch.Tensor] = {}
        plain = net(x, unit=recorded(signals, 1))
        assert list(signals) == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
        assert [s.shape[1:] for s in signals.values()] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
        ones = net(x, unit=multiplied({name: torch.ones_like(s) for name, s in signals.items()}))
        assert torch.equal(ones["logits"], plain["logits"])
        assert not torch.equal(net(x, unit=multiplied(signals))["logits"], plain["logits"])

        block, s = net.resnet.get_submodule("layer2.1"), signals["layer2.1"]
        nothing = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(torch.zeros_like(s))))))
        found = multiplied({"layer2.1": torch.zeros_like(s)})("layer2.1", block, s)
        assert torch.equal(found, relu(s + nothing))


def test_the_first_unit_multiplies_the_residual_path_alone(net):
    """Where a unit halves the resolution, its skip path sees x as it is."""
    block, x = net.resnet.get_submodule("layer2.0"), torch.rand(1, 64, 8, 8)
    with torch.inference_mode():
        signal = torch.rand_like(x)
        found = multiplied({"layer2.0": signal})("layer2.0", block, x)
        residual = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x * signal)))))
        assert torch.equal(found, relu(block.downsample(x) + residual))


def test_losses_by_hand():
    E_o = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    E_h = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    alpha = torch.tensor([[1.0, 0.5]])
    # the weighted differences are (1, 0) and (-1, 1): their mean is (0, 0.5)
    assert pmrd.l_m(E_o, E_h, alpha).tolist() == pytest.approx([0.25])
    assert pmrd.l_m(E_o, E_h, alpha, "inner").tolist() == pytest.approx([(1 * 1 + 0.5 * 8) / 2])
    assert pmrd.l_m(E_o, 2 * E_o[:, [1, 0]] - E_o, torch.ones(1, 2)).tolist() == pytest.approx([0.0])  # errors cancel

    h, o, y = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[2 * math.log(4), 0.0]]), torch.tensor([1])
    p, s = (0.25, 0.75), (0.8, 0.2)  # softmax of h; of o / 2
    expected = 0.6 * -math.log(p[1]) + 0.4 * -(s[0] * math.log(p[0]) + s[1] * math.log(p[1]))
    assert pmrd.l_d(h, o, y, 0.6, 2.0).tolist() == pytest.approx([expected])
    assert pmrd.l_d(h, o, y, 1.0, 2.0).tolist() == pytest.approx([-math.log(0.75)])


def test_weights_of_time(net):
    student = Hallucination(net, 128)
    outputs = {"cells": torch.randn(3, 7, 512, 2, 2)}
    as_printed, mean1 = (student.alpha(outputs, norm).detach() for norm in ("none", "mean1"))
    assert as_printed.shape == (3, 7)
    assert bool(((as_printed > 0) & (as_printed < 1)).all())
    torch.testing.assert_close(mean1.sum(1), torch.full((3,), 7.0))
    torch.testing.assert_close(mean1 / mean1[:, :1], as_printed / as_printed[:, :1])
    assert embeddings(outputs, "map").shape == (3, 7, 2048)
    torch.testing.assert_close(embeddings(outputs), outputs["cells"].mean((3, 4)))


def test_a_pair_answers_with_the_mean_or_a_classifier_of_its_own():
    torch.manual_seed(0)
    rgb, motion = EgoRNN(2, imagenet_classes=5), EgoRNN(2, imagenet_classes=5, channels=6)
    x, flow = torch.rand(1, T, 3, 64, 64), torch.rand(1, T, 6, 64, 64)
    with torch.inference_mode():
        out = TwoBranch(rgb, motion, 1, "avg_logits").eval()(x, flow)
        torch.testing.assert_close(out["logits"], (out["rgb"] + out["motion"]) / 2)
        torch.testing.assert_close(out["motion"], motion(flow)["logits"])  # the source receives nothing
        assert not torch.allclose(out["rgb"], rgb(x)["logits"])
        assert TwoBranch(rgb, motion, 1, "concat").eval()(x, flow)["logits"].shape == (1, 2)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"light": True, "fusion": "concat", "loss": "metric", "source_factor": 1.0},
        {"light": True, "network": "hallucination", "loss": "distillation"},
        {
            "light": True,
            "network": "hallucination",
            "temporal_attention": False,
            "embed": "map",
            "step3_signals": "flow",
        },
    ],
)
def test_what_each_step_trains(given):
    options = options_of(pmrd.Options, **given)
    data = data_for(pmrd.inputs(options))
    options = pmrd.resolve(options, data)
    assert options.cam_classes == 1000
    made: dict[str, Any] = {}
    terms = {}
    for stage in pmrd.stages(options, data):
        if stage.name == "hallucination":
            hallucination, flow = stage.module.branch, made["joint"].motion
            theirs = dict(flow.named_parameters()) | dict(flow.named_buffers())
            for name, value in (*hallucination.named_parameters(), *hallucination.named_buffers()):
                if name == "resnet.conv1.weight":
                    expected = flow.resnet.get_parameter("conv1.weight").mean(1, keepdim=True)
                    assert torch.equal(value, expected.expand(-1, hallucination.resnet.channels, -1, -1))
                else:
                    assert torch.equal(value, theirs[name]), name
        made[stage.name] = stage.module
        teacher = {k: v.clone() for k, v in made["joint"].motion.state_dict().items()} if "joint" in made else {}
        terms[stage.name] = check_stage(stage, data)
        if stage.name == "hallucination":
            assert all(torch.equal(v, teacher[k]) for k, v in made["joint"].motion.state_dict().items())
    expected = ["rgb-1", "rgb-2", "flow", "joint", "hallucination", "student"]
    assert list(terms) == expected[: 5 if options.network == "hallucination" else 6]
    assert set(terms["joint"]) == {"CE_rgb", "CE_motion", *(["CE_both"] if options.fusion == "concat" else [])}
    names = {"metric": {"L_M"}, "distillation": {"L_D"}, "both": {"L_M", "L_D"}}
    assert set(terms["hallucination"]) == names[options.loss]
    if options.network == "pmrd":
        assert made["student"].rgb is made["joint"].rgb  # RGB goes on from step 2
        assert made["student"].motion is made["hallucination"].branch


@pytest.mark.parametrize(
    ("network", "light", "always", "train"),
    [
        ("pmrd", False, {"rgb"}, {"maps", "flow"}),
        ("hallucination", False, {"rgb"}, {"maps", "flow"}),
        ("two-branch", False, {"rgb", "flow"}, {"maps"}),
        ("flow", False, {"flow"}, {"maps"}),
        ("rgb", False, {"maps"}, set()),
        ("pmrd", True, {"maps"}, {"flow_maps"}),
        ("two-branch", True, {"maps", "flow_maps"}, set()),
    ],
)
def test_what_is_read_and_when(network, light, always, train):
    read = pmrd.inputs(pmrd.Options(network=network, light=light))
    assert {one.name for one in read if one.when == "always"} == always
    assert {one.name for one in read if one.when == "train"} == train


def test_misuse():
    for wrong, message in (
        ({"lam": 1.5}, "lam=1.5: give a weight between 0 and 1"),
        ({"delta": 0.0}, "delta=0.0: give a positive number"),
        ({"step3_signals": "flow"}, "step3_signals=flow is for network=hallucination, not pmrd"),
        ({"network": "rgb", "lam": 0.3}, "lam=0.3 means nothing with network=rgb"),
        ({"network": "two-branch", "metric": "inner"}, "metric=inner means nothing with network=two-branch"),
        ({"loss": "metric", "delta": 4.0}, "delta=4.0 means nothing with loss=metric"),
        ({"loss": "distillation", "embed": "map"}, "embed=map means nothing with loss=distillation"),
        ({"temporal_attention": False, "alpha_norm": "none"}, "alpha_norm=none means nothing"),
        ({"unit": 2}, "unit=2: connections enter the first or second unit"),
        ({"student": "sgd lr=fast"}, "student='sgd lr=fast': lr=fast is not a number"),
        ({"joint": "epoch=3"}, r"joint='epoch=3': Unknown setting 'epoch': did you mean 'epochs'"),
    ):
        with pytest.raises(OptionError, match=message):
            pmrd.Options(**wrong)


def test_every_row_of_its_tables_can_be_run():
    tables = presets.tables("pmrd")
    assert [len(tables[name].rows) for name in ("table1", "table2")] == [8, 9]
    assert [row.name for row in tables["table2"].rows if row.method == "egornn"] == ["Two-stream", "TSN", "Ego-RNN"]
    assert sum(row.quoted for row in tables["table2"].rows) == 5
