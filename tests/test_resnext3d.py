"""3-D ResNeXt-101 against the published names and shapes, and against a plain functional version of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbone_cases import batch_norms, check_batch, check_misuse, check_stops, images, relative
from golden_weights import WEIGHTS, golden_state

from kdcache import backbones
from kdcache.backbones import resnext3d_layers
from kdcache.backbones.checkpoint import fill, random_init
from kdcache.backbones.freeze import Frozen
from kdcache.backbones.resnext3d import ResNeXt3D
from kdcache.errors import OptionError

pytestmark = pytest.mark.usefixtures("one_thread")


def published_shapes(channels):
    """Names and shapes of MARS's checkpoints (craston/MARS, models/resnext.py), written out from its definition."""
    norm = ("weight", "bias", "running_mean", "running_var")
    shapes = {"conv1.weight": (64, channels, 7, 7, 7), **{f"bn1.{n}": (64,) for n in norm}}
    before = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 23, 3), (128, 256, 512, 1024), strict=True), 1):
        for b in range(blocks):
            at = f"layer{stage}.{b}"
            shapes[f"{at}.conv1.weight"] = (width, before, 1, 1, 1)
            shapes[f"{at}.conv2.weight"] = (width, width // 32, 3, 3, 3)
            shapes[f"{at}.conv3.weight"] = (2 * width, width, 1, 1, 1)
            for i, n in ((1, width), (2, width), (3, 2 * width)):
                shapes |= {f"{at}.bn{i}.{entry}": (n,) for entry in norm}
            if b == 0:
                shapes[f"{at}.downsample.0.weight"] = (2 * width, before, 1, 1, 1)
                shapes |= {f"{at}.downsample.1.{entry}": (2 * width,) for entry in norm}
            before = 2 * width
    return shapes | {"fc.weight": (400, 2048), "fc.bias": (400,)}


def functional(x, state, upto):
    """The network straight from its definition, without modules."""

    def norm(x, at):
        stats = (state[f"{at}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats)

    x = F.conv3d(x, state["conv1.weight"], stride=(1, 2, 2), padding=3)
    x = F.max_pool3d(F.relu(norm(x, "bn1")), 3, 2, 1)
    for stage, blocks in enumerate((3, 4, 23, 3), 1):
        for b in range(blocks):
            at, stride = f"layer{stage}.{b}", 2 if stage > 1 and b == 0 else 1
            out = F.relu(norm(F.conv3d(x, state[f"{at}.conv1.weight"]), f"{at}.bn1"))
            out = F.conv3d(out, state[f"{at}.conv2.weight"], stride=stride, padding=1, groups=32)
            out = norm(F.conv3d(F.relu(norm(out, f"{at}.bn2")), state[f"{at}.conv3.weight"]), f"{at}.bn3")
            if b == 0:
                x = norm(F.conv3d(x, state[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(out + x)
        if upto == f"layer{stage}":
            return x
    return F.linear(x.mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> ResNeXt3D:
    """Read from a file as MARS's training writes it: wrapped, with every name behind ``module.``."""
    with torch.device("meta"):
        blank = ResNeXt3D()
    drawn = random_init(blank, 3)
    shapes = published_shapes(3)
    assert {k: tuple(v.shape) for k, v in drawn.items() if not k.endswith("num_batches_tracked")} == shapes
    path = tmp_path_factory.mktemp("mars") / "RGB_Kinetics_16f.pth"
    state = {f"module.{name}": value for name, value in drawn.items()}
    torch.save({"epoch": 400, "arch": "resnext-101", "state_dict": state, "optimizer": {}}, path)
    built = backbones.build("resnext101", path)
    path.unlink()
    assert isinstance(built, ResNeXt3D)
    generator = torch.Generator().manual_seed(0)
    for module in built.modules():  # drawn batch norms are the identity, which would hide a mistake in them
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return built


@pytest.mark.parametrize("layer", ["layer1", "layer3", "logits"])
def test_against_the_definition(net, layer):
    x = net.prepare(images(1, 16, 32, 48, 3)) / 128
    with torch.inference_mode():
        assert relative(net.features(x, layer), functional(x, net.state_dict(), layer)) < 1e-4


def test_names_of_the_flow_network():
    with torch.device("meta"):
        state = ResNeXt3D(channels=2).state_dict()
    found = {k: tuple(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert found == published_shapes(2)


@pytest.mark.parametrize("frames", [16, 64])
@pytest.mark.parametrize("channels", [2, 3])
def test_published_shapes(frames, channels):
    with torch.device("meta"):
        net = ResNeXt3D(channels=channels).eval()
        outputs = dict(net.endpoints(torch.zeros(2, channels, frames, 112, 112)))
    t = frames // 16
    expected = {
        "layer1": (256, 8 * t, 28, 28),
        "layer2": (512, 4 * t, 14, 14),
        "layer3": (1024, 2 * t, 7, 7),
        "layer4": (2048, t, 4, 4),
        "pool": (2048,),
        "logits": (400,),
    }
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == expected
    assert {n: resnext3d_layers.shape(n, channels, frames, 112) for n in resnext3d_layers.ORDER} == expected


def test_other_sizes_have_the_promised_shapes():
    with torch.device("meta"):
        net = ResNeXt3D().eval()
        for frames, size in ((9, 50), (32, 128), (1, 33)):
            for layer, output in net.endpoints(torch.zeros(1, 3, frames, size, size)):
                assert output.shape[1:] == resnext3d_layers.shape(layer, 3, frames, size), (layer, frames, size)


def test_registry():
    assert backbones.input_spec("resnext101").size == 112
    assert backbones.input_spec("resnext101-flow").channels == 2
    assert backbones.layer_shape("resnext101-flow", "layer3") == ("layer3", (1024, 2, 7, 7))
    assert backbones.layer_shape("resnext101", "layer4", frames=64) == ("layer4", (2048, 4, 4, 4))


def test_features_stop_where_asked(net):
    x = net.prepare(images(1, 4, 16, 16, 3))
    check_stops(net, x, "layer2", "layer2", ("layer3", "layer4", "fc"))
    check_stops(net, x, "pool", "layer4", ("fc",))


def test_batch(net):
    check_batch(net, net.prepare(images(16, 8, 32, 32, 3)), "layer4")


def test_misuse(net):
    check_misuse(net, torch.zeros(1, 3, 8, 32, 32), 3)
    with pytest.raises(OptionError, match="got 4"):
        ResNeXt3D(channels=4)


def test_prepare(net):
    pixels = images(1, 4, 16, 16, 3)
    mean = torch.tensor([114.7748, 107.7354, 99.4750])
    assert torch.equal(net.prepare(pixels), (pixels.float() - mean).permute(0, 4, 1, 2, 3))
    with torch.device("meta"):
        flow = ResNeXt3D(channels=2)
    fields = images(1, 4, 16, 16, 2)
    assert torch.equal(flow.prepare(fields), (fields.float() - 127.5).permute(0, 4, 1, 2, 3))


def test_frozen_is_the_network(net):
    pixels = images(2, 8, 32, 32, 3)
    frozen = Frozen(net, "layer3")
    assert batch_norms(frozen._net) == 0
    assert not any(name.startswith(("layer4", "fc")) for name in frozen._net.state_dict())
    with torch.inference_mode():
        assert relative(frozen(pixels), net.features(net.prepare(pixels), "layer3")) < 1e-4


def test_golden():
    """Of MARS's own code."""
    net = fill(ResNeXt3D(), golden_state(WEIGHTS / "resnext101_rgb_state_dict.json"), "golden").eval()
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 112, 112)).astype(np.float32))
    with torch.inference_mode():
        outputs = dict(net.endpoints(x))
    with np.load(WEIGHTS / "resnext101_rgb_golden.npz") as file:
        expected = {name: torch.from_numpy(file[name]) for name in file.files}
    assert relative(outputs["layer3"][:, ::16], expected["layer3"]) < 1e-4
    assert relative(outputs["layer4"][:, ::8], expected["layer4"]) < 1e-4
    assert relative(outputs["pool"], expected["pool"]) < 1e-4
    assert relative(outputs["logits"], expected["logits"]) < 1e-4


@pytest.mark.parametrize("name", ["resnext101", "resnext101-flow"])
def test_names_and_shapes_are_the_published_checkpoints(name):
    file = WEIGHTS / f"{name.partition('-')[0]}_{'flow' if 'flow' in name else 'rgb'}_state_dict.json"
    net = backbones.build(name, "random:0")
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == json.loads(file.read_text())
