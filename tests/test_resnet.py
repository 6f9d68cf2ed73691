"""ResNet-34 against torchvision's, the two maps of its last block, its attention, and flow stacks."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from backbone_cases import batch_norms, check_batch, check_misuse, check_stops, images, relative
from golden_weights import WEIGHTS, golden_state
from torchvision.models import resnet34

from kdcache import backbones
from kdcache.backbones import metadata, resnet_layers
from kdcache.backbones.freeze import Frozen
from kdcache.backbones.resnet import ResNet34, cam_attention, cross_modality
from kdcache.data.open import backbone_state
from kdcache.errors import OptionError, WeightsError
from kdcache.motion.stacks import flow_stacks, stacked

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def state():
    return golden_state(WEIGHTS / "resnet34_state_dict.json")


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    """A file as torchvision publishes it."""
    path = tmp_path_factory.mktemp("resnet") / "resnet34-b627a593-like.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def net(checkpoint) -> ResNet34:
    built = backbones.build("resnet34", checkpoint)
    assert isinstance(built, ResNet34)
    return built


@pytest.fixture(scope="module")
def flow() -> ResNet34:
    built = backbones.build("resnet34-flow", "random:0", num_classes=61)
    assert isinstance(built, ResNet34)
    return built


def test_scores_and_maps_are_torchvisions(net, state):
    reference = resnet34(weights=None).eval()
    reference.load_state_dict(state)
    seen = {}
    for name in ("layer1", "layer2", "layer3", "layer4", "avgpool"):
        reference.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    block = reference.layer4[2]
    block.register_forward_pre_hook(lambda _, inputs: seen.update(into=inputs[0].clone()))
    block.conv2.register_forward_hook(lambda _, __, out: seen.update(conv2=out.clone()))
    x = net.prepare(images(1, 3, 96, 96, 3))
    with torch.inference_mode():
        scores = reference(x[0])
        outputs = dict(net.endpoints(x[0]))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        assert relative(outputs[name], seen[name]) < 1e-6, name
    assert relative(outputs["pool"], seen["avgpool"].flatten(1)) < 1e-6
    assert relative(outputs["logits"], scores) < 1e-6
    assert relative(outputs["layer4-pre"], seen["conv2"] + seen["into"]) < 1e-6  # F~: no batch norm, no ReLU
    attention = cam_attention(seen["layer4"], state["fc.weight"], scores)
    assert relative(outputs["attended"], outputs["layer4-pre"] * attention[:, None]) < 1e-5


def test_names_are_torchvisions(net):
    published = json.loads((WEIGHTS / "resnet34_state_dict.json").read_text())
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == published


def test_cam_attention_against_loops():
    rng = np.random.default_rng(0)
    maps, weight, bias = rng.normal(size=(2, 5, 3, 4)), rng.normal(size=(7, 5)), rng.normal(size=7)
    scores = maps.mean((2, 3)) @ weight.T + bias
    found = cam_attention(*(torch.from_numpy(a).float() for a in (maps, weight, scores)))
    for n in range(2):
        best = max(range(7), key=lambda k, n=n: scores[n, k])
        energy = [[sum(weight[best, c] * maps[n, c, y, x] for c in range(5)) for x in range(4)] for y in range(3)]
        expected = np.exp(energy) / np.exp(energy).sum()
        np.testing.assert_allclose(found[n], expected, rtol=1e-5)


def test_cam_attention_gradients_and_frames():
    maps = torch.randn(2, 3, 5, 4, 4, requires_grad=True)
    weight = torch.randn(7, 5, requires_grad=True)
    attention = cam_attention(maps, weight, torch.randn(2, 3, 7))
    assert attention.shape == (2, 3, 4, 4)
    assert torch.allclose(attention.sum((2, 3)), torch.ones(2, 3))
    attention.square().sum().backward()
    assert maps.grad is not None
    assert weight.grad is not None
    flat = cam_attention(torch.zeros(1, 5, 4, 4), weight, torch.randn(1, 7))
    assert torch.allclose(flat, torch.full((1, 4, 4), 1 / 16))


def test_shapes_are_as_promised(net, flow):
    for each, channels in ((net, 3), (flow, 6)):
        x = each.prepare(images(1, 2, 72, 72, channels))
        with torch.inference_mode():
            for layer in resnet_layers.ORDER:
                promised = resnet_layers.shape(layer, channels, 2, 72, each.num_classes)
                assert each.features(x, layer).shape == (1, *promised), layer
    assert net.layers["layer3"] == (20, 256, 14, 14)
    assert net.layers["layer4-pre"] == (20, 512, 7, 7)
    assert backbones.layer_shape("resnet34-flow", "layer4") == ("layer4", (20, 512, 7, 7))


def test_features_stop_where_asked(net):
    x = net.prepare(images(1, 1, 64, 64, 3))
    check_stops(net, x, "layer3", "layer3", ("layer4", "fc"))
    check_stops(net, x, "layer4-pre", "layer4.2.conv2", ("layer4.2.bn2", "fc"))
    check_stops(net, x, "pool", "layer4", ("fc",))


@pytest.mark.parametrize("layer", ["layer4", "attended"])
def test_batch(net, layer):
    check_batch(net, net.prepare(images(16, 1, 64, 64, 3)), layer)


def test_misuse(net, flow):
    check_misuse(net, torch.zeros(1, 2, 3, 64, 64), 3)
    check_misuse(flow, torch.zeros(1, 2, 6, 64, 64), 6)
    with pytest.raises(OptionError, match="even number of flow channels; got 5"):
        ResNet34(channels=5)


@pytest.mark.parametrize("layer", ["layer3", "layer4-pre", "layer4", "attended"])
def test_frozen_is_the_network(net, layer):
    pixels = images(2, 2, 64, 64, 3)
    frozen = Frozen(net, layer)
    assert batch_norms(frozen._net) == (0 if layer == "layer3" else 1)  # folding the last one would lose F~
    with torch.inference_mode():
        assert relative(frozen(pixels), net.features(net.prepare(pixels), layer)) < 1e-4


def test_prepare(net, flow):
    pixels = images(1, 2, 32, 32, 3)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert relative(net.prepare(pixels), ((pixels / 255 - mean) / std).permute(0, 1, 4, 2, 3)) < 1e-6
    fields = images(1, 2, 32, 32, 6)
    assert relative(flow.prepare(fields), ((fields / 255 - 0.449) / 0.226).permute(0, 1, 4, 2, 3)) < 1e-6


@pytest.mark.parametrize(("name", "channels"), [("resnet34-flow", 6), ("resnet34-flow5", 10)])
def test_cross_modality(state, tmp_path, name, channels):
    inflated = cross_modality(state, channels)
    kernel = inflated["conv1.weight"]
    assert kernel.shape == (64, channels, 7, 7)
    for c in range(channels):
        assert torch.allclose(kernel[:, c], state["conv1.weight"].mean(1))
    assert all(inflated[k] is v for k, v in state.items() if k != "conv1.weight")
    back = cross_modality(inflated, 3)["conv1.weight"]
    assert torch.allclose(back, state["conv1.weight"].mean(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.save(inflated, tmp_path / "flow.pth")
    net = backbones.build(name, tmp_path / "flow.pth")
    assert net.features(net.prepare(images(1, 1, 32, 32, channels)), "logits").shape == (1, 1, 1000)


@pytest.mark.parametrize(("name", "channels"), [("resnet34-flow", 6), ("resnet34-flow5", 10)])
def test_flow_networks_take_rgb_weights_across(state, checkpoint, tmp_path, name, channels):
    """Published and fitted ones; all but conv1 is the file's, and the recipe names the file."""
    net = backbones.build(name, checkpoint)
    own = net.state_dict()
    mean = state["conv1.weight"].numpy().mean(1)
    np.testing.assert_allclose(own["conv1.weight"].numpy(), np.stack([mean] * channels, 1), atol=1e-7)
    assert all(torch.equal(own[k], v) for k, v in state.items() if k != "conv1.weight")
    assert net.weights_id == {"sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    pixels = images(1, 1, 64, 64, channels)
    alike = pixels[..., :1].repeat(1, 1, 1, 1, channels)
    rgb = net.prepare(alike)[0].mean(1, keepdim=True).repeat(1, 3, 1, 1)  # a sum of C equal channels: C / 3 of RGB's
    conv1 = torch.nn.functional.conv2d(rgb, state["conv1.weight"], stride=2, padding=3) * channels / 3
    with torch.inference_mode():
        assert relative(net.get_submodule("conv1")(net.prepare(alike)[0]), conv1) < 1e-5

    assert backbones.build(name, checkpoint, num_classes=61).state_dict()["fc.weight"].shape == (61, 512)
    five = state | {"fc.weight": state["fc.weight"][:5], "fc.bias": state["fc.bias"][:5]}
    facts = {"num_classes": 5, "classes": tuple(range(5))}
    metadata.write(tmp_path / "fit.safetensors", five, metadata.FitMetadata(backbone="resnet34", **facts))
    fitted = backbones.build(name, tmp_path / "fit.safetensors")
    assert fitted.layers["logits"] == (20, 5)
    assert torch.equal(fitted.state_dict()["conv1.weight"], own["conv1.weight"])


def test_no_other_weights_are_taken_across(state, checkpoint, tmp_path):
    torch.save(cross_modality(state, 10), tmp_path / "ten.pth")
    with pytest.raises(WeightsError, match=r"conv1.weight has shape \[64, 10, 7, 7\], expected \[64, 6, 7, 7\]"):
        backbones.build("resnet34-flow", tmp_path / "ten.pth")
    with pytest.raises(WeightsError, match=r"conv1.weight has shape \[64, 10, 7, 7\], expected \[64, 3, 7, 7\]"):
        backbones.build("resnet34", tmp_path / "ten.pth")
    facts = {"num_classes": 1000, "classes": tuple(range(1000))}
    for fitted, asked in (("resnet34-flow", "resnet34"), ("resnet34-flow", "resnet34-flow5"), ("tsm", "resnet34-flow")):
        metadata.write(tmp_path / "fit.safetensors", state, metadata.FitMetadata(backbone=fitted, **facts))
        with pytest.raises(WeightsError, match=f"was fitted as {fitted}, not as {asked}"):
            backbones.build(asked, tmp_path / "fit.safetensors")


def test_the_adapted_network_is_what_methods_start_from(state, checkpoint):
    """``Data.backbone`` of a stream of flow features that RGB weights computed."""
    weights = backbones.weights_id("resnet34-flow", checkpoint)
    recipe = {"stream": "resnet34-flow/layer4", "backbone": {"name": "resnet34-flow", "weights": weights}}
    found = backbone_state(recipe, str(checkpoint))
    assert torch.equal(found["conv1.weight"], cross_modality(state, 6)["conv1.weight"])


def test_flow_stacks():
    assert flow_stacks(10, np.array([0, 4, 9]), 3).tolist() == [[0, 0, 1], [3, 4, 5], [8, 9, 9]]
    assert flow_stacks(10, np.array([4]), 5).tolist() == [[2, 3, 4, 5, 6]]
    assert flow_stacks(1, np.array([0]), 5).tolist() == [[0] * 5]
    fields = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 2), np.uint8)
    found = stacked(fields, flow_stacks(10, np.array([4, 9]), 3))
    assert found.shape == (2, 4, 5, 6)
    for i, t in enumerate([3, 4, 5]):
        np.testing.assert_array_equal(found[0, ..., 2 * i : 2 * i + 2], fields[t])
