"""Ego-RNN against its authors' code, its ConvLSTM against the plain form, and the published names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backbone_cases import images, relative
from golden_weights import WEIGHTS, golden_state
from torch import nn

from kdcache import backbones
from kdcache.backbones.convlstm import GATES, ConvLSTM, fused
from kdcache.backbones.egornn import EgoRNN, EgoRNNJoint
from kdcache.backbones.resnet import ResNet34
from kdcache.errors import OptionError, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")

ALIASES = {"weight_softmax": "resNet.fc.weight", "classifier.1.weight": "fc.weight", "classifier.1.bias": "fc.bias"}
JOINT_ALIASES = {f"frameModel.{alias}": f"frameModel.{name}" for alias, name in ALIASES.items()} | {
    "classifier.1.weight": "fc2.weight",
    "classifier.1.bias": "fc2.bias",
}


def published(name: str, aliases: dict[str, str]) -> dict[str, torch.Tensor]:
    """A checkpoint as Ego-RNN's code saves it, by the rule of the goldens."""
    state = golden_state(WEIGHTS / f"{name}_state_dict.json")
    return state | {alias: state[of] for alias, of in aliases.items()}


def difference(found: torch.Tensor, golden: np.ndarray) -> float:
    """Largest difference, of values beyond 1 relative; the goldens, in float32, are 5e-5 from what float64 gives."""
    expected = torch.from_numpy(golden)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.fixture(scope="module")
def rgb(tmp_path_factory) -> EgoRNN:
    path = tmp_path_factory.mktemp("egornn") / "rgb.pth"
    torch.save(published("egornn_rgb", ALIASES), path)
    net = backbones.build("egornn", weights=path, num_classes=61)
    assert isinstance(net, EgoRNN)
    return net


def test_agrees_with_its_authors_code(rgb):
    golden = np.load(WEIGHTS / "egornn_rgb_golden.npz")
    frames = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (4, 1, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        out = rgb(frames.transpose(0, 1))
    assert out["attention"].shape == (1, 4, 7, 7)
    assert difference(out["logits"], golden["logits"]) < 1e-4
    assert difference(out["descriptor"], golden["descriptor"]) < 1e-4
    assert difference(out["attention"].transpose(0, 1), golden["attention"]) < 1e-4


def test_joint_agrees_with_its_authors_code(tmp_path):
    torch.save(published("egornn_joint", JOINT_ALIASES), tmp_path / "joint.pth")
    net = backbones.build("egornn-joint", weights=tmp_path / "joint.pth")
    assert isinstance(net, EgoRNNJoint)
    golden = np.load(WEIGHTS / "egornn_joint_golden.npz")
    rng = np.random.default_rng(0)
    flow = torch.from_numpy(rng.uniform(-1, 1, (1, 10, 224, 224)).astype(np.float32))
    frames = torch.from_numpy(rng.uniform(-1, 1, (4, 1, 3, 224, 224)).astype(np.float32)).transpose(0, 1)
    with torch.inference_mode():
        out = net(frames, flow)
    for name in golden.files:
        assert difference(out[name], golden[name]) < 1e-4, name
    assert out["attention"].shape == (1, 4, 7, 7)
    with pytest.raises(OptionError, match=r"takes frames \[B, T, 3, H, W\]"):
        net(flow, frames)


def test_other_number_of_classes_and_damage(tmp_path):
    state = published("egornn_rgb", ALIASES)
    torch.save(state, tmp_path / "rgb.pth")
    assert backbones.build("egornn", tmp_path / "rgb.pth", num_classes=10).classify.out_features == 10
    torch.save(state | {"weight_softmax": state["weight_softmax"] + 1}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"weight_softmax and resNet\.fc\.weight"):
        backbones.build("egornn", tmp_path / "odd.pth")
    torch.save({k: v for k, v in state.items() if k != "lstm_cell.conv_f_hh.weight"}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="lstm"):
        backbones.build("egornn", tmp_path / "part.pth")


def plain(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The recurrence as it is printed: eight convolutions a step; ``[B, T, C, h, w]`` → c_T."""
    conv = nn.functional.conv2d
    h = c = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        g = {
            gate: conv(x[:, t], state[f"conv_{gate}_xx.weight"], state[f"conv_{gate}_xx.bias"], padding=1)
            + conv(h, state[f"conv_{gate}_hh.weight"], padding=1)
            for gate in GATES
        }
        c = g["f"].sigmoid() * c + g["i"].sigmoid() * g["c"].tanh()
        h = g["o"].sigmoid() * c.tanh()
    return c


def test_two_convolutions_equal_eight():
    state, rng = {}, torch.Generator().manual_seed(0)
    for gate in GATES:
        state[f"conv_{gate}_xx.weight"] = torch.randn(8, 8, 3, 3, generator=rng) / 8
        state[f"conv_{gate}_xx.bias"] = torch.randn(8, generator=rng)
        state[f"conv_{gate}_hh.weight"] = torch.randn(8, 8, 3, 3, generator=rng) / 8
    lstm = ConvLSTM(8, 8)
    lstm.load_state_dict(fused(state, ""))
    x = torch.randn(2, 5, 8, 7, 7, generator=rng)
    with torch.inference_mode():
        found = lstm(x)
    assert found.shape == (2, 5, 8, 7, 7)
    assert relative(found[:, -1], plain(state, x)) < 1e-5
    assert relative(found[:, 2], plain(state, x[:, :3])) < 1e-5


def test_each_gate_starts_as_a_convolution_of_its_own():
    torch.manual_seed(0)
    lstm = ConvLSTM(64, 64)
    expected = (2 / (2 * 64 * 9)) ** 0.5  # Xavier of one gate's kernel, not of the four together
    for conv in (lstm.input, lstm.hidden):
        for kernels in conv.weight.detach().chunk(4):
            assert float(kernels.std()) == pytest.approx(expected, rel=0.02)
    assert not lstm.input.bias.any()


def test_blocks_can_be_run_from_outside(rgb):
    """The maps do not depend on where the walk starts, and every block but the last is offered."""
    net: ResNet34 = rgb.resnet
    x = net.prepare(images(1, 2, 64, 64, 3)).flatten(0, 1)
    seen: dict[str, torch.Size] = {}

    def unit(name, block, x):
        seen[name] = x.shape
        return block(x)

    with torch.inference_mode():
        maps, pre = net.maps(x, unit=unit)
        layer3 = net.features(x[None], "layer3")[0]
        again = net.maps(layer3, "layer4")
        assert torch.equal(maps, net.features(x[None], "layer4")[0])
        assert torch.equal(pre, net.features(x[None], "layer4-pre")[0])
    assert torch.equal(again[0], maps)
    assert torch.equal(again[1], pre)
    assert len(seen) == 15  # of 16
    assert seen["layer1.1"] == (2, 64, 16, 16)
    assert "layer4.2" not in seen


def test_layers_as_features(rgb):
    with torch.inference_mode():
        x = rgb.prepare(images(1, 2, 64, 64, 3))
        assert rgb.features(x, "attention").shape == (1, 2, 2, 2)
        assert torch.equal(rgb.features(x, "descriptor"), rgb(x)["descriptor"])
    assert backbones.layer_axes("egornn", "attention") == "THW"
    assert rgb.layers["attention"] == (25, 7, 7)
