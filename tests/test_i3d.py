"""I3D against its golden outputs, its shape rules, and the frozen network against the plain one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_weights import WEIGHTS, golden_state
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdcache import backbones
from kdcache.backbones import i3d_layers
from kdcache.backbones.checkpoint import fill
from kdcache.backbones.freeze import Frozen, fold_batch_norm
from kdcache.backbones.i3d import I3D, I3DTail, SameConv3d, SameMaxPool3d
from kdcache.errors import DeviceError, OptionError
from kdcache.runtime import cpu_computes

pytestmark = pytest.mark.usefixtures("one_thread")
needs_bf16 = pytest.mark.skipif(not cpu_computes("bf16"), reason="this CPU computes no bf16")


@pytest.fixture(scope="module")
def net() -> I3D:
    built = backbones.build("i3d-rgb", weights="random:0")
    assert isinstance(built, I3D)
    return built


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """Three small clips of smooth moving colour, uint8 [3, 9, 48, 48, 3]."""
    rng = np.random.default_rng(1)
    coarse = torch.from_numpy(rng.uniform(0, 255, (3, 3, 5, 6, 6)).astype(np.float32))
    fine = F.interpolate(coarse, size=(9, 48, 48), mode="trilinear")
    return fine.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def test_golden_outputs() -> None:
    net = fill(I3D(), golden_state(WEIGHTS / "i3d_rgb_state_dict.json"), "golden").eval()
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 16, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        outputs = dict(net.endpoints(x))
        tail = fill(I3DTail(400), net.state_dict(), "golden", part=True).eval()
        scores, features = tail(outputs["MaxPool3d_4a_3x3"]).values()
        classified = net.logits(outputs["pool"][..., None, None, None]).flatten(1)
    with np.load(WEIGHTS / "i3d_rgb_golden.npz") as golden:
        expected = {name: torch.from_numpy(golden[name]) for name in golden.files}
    assert outputs["Logits"].shape == (1, 400, 1)
    assert relative(outputs["MaxPool3d_4a_3x3"], expected["mixed4a"]) < 1e-4
    assert relative(outputs["Mixed_5c"].mean((2, 3, 4)), expected["mixed5c_mean"]) < 1e-4
    assert relative(outputs["Logits"], expected["logits"]) < 1e-4
    assert torch.equal(features, outputs["Mixed_5c"])  # the tail is the network, cut
    assert torch.equal(scores, outputs["Logits"].mean(2))
    assert relative(classified, scores) < 1e-5


@given(
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    front, back = i3d_layers.same_padding(size, kernel, stride)
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    assert (front, back) == (total // 2, total - total // 2)


@pytest.mark.parametrize("size", [(4, 6, 6), (5, 7, 9), (8, 9, 12)])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_max_pool_equals_explicit_zero_padding(size, kernel, stride) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pads = [i3d_layers.same_padding(n, k, s) for n, k, s in zip(size, kernel, stride, strict=True)]
    padded = F.pad(x, [p for pair in reversed(pads) for p in pair])
    assert torch.equal(SameMaxPool3d(kernel, stride)(x), F.max_pool3d(padded, kernel, stride))


def test_layer_shapes_are_those_computed(net: I3D) -> None:
    with torch.inference_mode():
        for frames, size in ((9, 45), (17, 112)):
            for name, output in net.endpoints(torch.zeros(1, 3, frames, size, size)):
                assert (name, tuple(output.shape[1:])) == backbones.layer_shape("i3d-rgb", name, frames, size)
    assert net.layers["mixed4a"] == net.layers["MaxPool3d_4a_3x3"] == (480, 8, 14, 14)
    assert net.layers["Mixed_5c"] == net.layers["mixed5c"] == (1024, 4, 7, 7)
    assert (net.layers["pool"], net.layers["logits"]) == ((1024,), (400, 3))
    assert backbones.layer_shape("i3d-flow", "mixed4a") == ("MaxPool3d_4a_3x3", (480, 8, 14, 14))


def test_features_compute_no_further_than_the_layer(net: I3D) -> None:
    ran: list[str] = []
    hooks = [m.register_forward_hook(lambda *_, n=name: ran.append(n)) for name, m in net.named_children()]
    net.features(torch.zeros(1, 3, 2, 32, 32), "mixed3b")
    for hook in hooks:
        hook.remove()
    assert ran == list(i3d_layers.BLOCKS[: i3d_layers.BLOCKS.index("Mixed_3b") + 1])


def test_short_clips_stop_at_the_average_pool_only(net: I3D) -> None:
    x = torch.zeros(1, 3, 8, 32, 32)
    assert net.features(x, "Mixed_5c").shape[2] == 1
    for layer in ("pool", "logits"):
        with pytest.raises(OptionError, match="at least 9 frames"):
            net.features(x, layer)
    with pytest.raises(OptionError, match="at least 9 frames"):
        backbones.layer_shape("i3d-rgb", "pool", frames=8)
    with pytest.raises(OptionError, match="3 time steps at mixed4a"):
        I3DTail(5)(torch.zeros(1, 480, 2, 7, 7))


def test_wrong_names_and_inputs_are_refused(net: I3D) -> None:
    with pytest.raises(OptionError, match="did you mean 'mixed4b'"):
        net.features(torch.zeros(1, 3, 8, 32, 32), "mixed4bb")
    with pytest.raises(OptionError, match="Unknown backbone 'i3d-rgbb': did you mean 'i3d-rgb'"):
        backbones.build("i3d-rgbb", "random:0")
    with pytest.raises(OptionError, match="Unknown input layer"):
        I3DTail(5, "Mixed_5c")
    with pytest.raises(OptionError, match="2-channel flow"):
        net.features(torch.zeros(1, 2, 8, 32, 32), "mixed4a")
    for bad in (torch.zeros(1, 8, 32, 32, 2, dtype=torch.uint8), torch.zeros(1, 8, 32, 32, 3)):
        with pytest.raises(OptionError, match="uint8"):
            net.prepare(bad)


def test_prepare_scales_bytes_to_plus_minus_one(net: I3D) -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    out = net.prepare(ramp)
    assert out.shape == (1, 3, 3, 16, 16)
    expected = 2 * ramp[..., 0].double() / 255 - 1
    assert torch.allclose(out[:, 0].double(), expected, atol=1e-6)
    assert (out.min(), out.max()) == (-1, 1)


def test_random_weights_keep_the_scale_of_activations(net: I3D, clips: torch.Tensor) -> None:
    with torch.inference_mode():
        x = net.prepare(clips)
        scales = {name: float(output.square().mean().sqrt()) for name, output in net.endpoints(x)}
        start = float(x.square().mean().sqrt())
    assert all(0.1 * start < scale < 30 * start for scale in scales.values()), scales


def test_frozen_fp32_equals_the_network(net: I3D, clips: torch.Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    for layer in ("mixed4a", "pool", "logits"):
        frozen = backbones.frozen(net, layer)
        assert isinstance(frozen, Frozen)
        with torch.no_grad():
            expected = net.features(net.prepare(clips), layer)
        found = frozen(clips)
        assert (found.dtype, found.device.type, found.is_contiguous()) == (torch.float32, "cpu", True)
        assert relative(found, expected) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_clip_does_not_depend_on_its_batch(net: I3D, clips: torch.Tensor, precision: str) -> None:
    frozen = backbones.frozen(net, "mixed4a", precision)
    together = frozen(clips)
    apart = torch.cat([frozen(clips[i : i + 1]) for i in range(len(clips))])
    assert torch.equal(together, apart)
    assert torch.equal(together, frozen(clips))  # and twice the same
    assert not torch.equal(together[0], together[1])


@needs_bf16
def test_frozen_bf16_is_near_fp32(net: I3D, clips: torch.Tensor) -> None:
    for layer, bound in (("mixed4a", 0.01), ("logits", 0.02)):
        full, half = (backbones.frozen(net, layer, precision)(clips) for precision in ("fp32", "bf16"))
        error = float((full - half).norm() / full.norm())
        assert 0 < error < bound


def test_frozen_drops_what_it_does_not_need(net: I3D) -> None:
    frozen = Frozen(net, "mixed4a")
    kept = dict(frozen._net.named_children())
    assert "MaxPool3d_4a_3x3" in kept
    assert not any(name.startswith(("Mixed_4", "Mixed_5", "logits")) for name in kept)
    assert not any(isinstance(m, nn.BatchNorm3d) for m in frozen._net.modules())


def test_folding_keeps_trained_batch_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(SameConv3d(3, 5, 3, bias=False), nn.BatchNorm3d(5, eps=1e-3), nn.ReLU(), nn.Conv3d(5, 2, 1))
    norm = layers[1]
    assert isinstance(norm, nn.BatchNorm3d)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(5, generator=generator) + 0.5)
    layers.eval()
    x = torch.randn(2, 3, 4, 6, 6, generator=generator)
    expected = layers(x)
    fold_batch_norm(layers)
    assert isinstance(layers[1], nn.Identity)
    assert torch.allclose(layers(x), expected, atol=1e-5)


def test_frozen_refuses_what_it_cannot_do(net: I3D, clips: torch.Tensor) -> None:
    with pytest.raises(OptionError, match="did you mean 'fp32'"):
        backbones.frozen(net, "mixed4a", precision="fp3")
    with pytest.raises(OptionError, match="a GPU is called cuda here"):
        backbones.frozen(net, "mixed4a", device="gpu")
    with pytest.raises(OptionError, match="Unknown layer"):
        backbones.frozen(net, "mixed4z")
    with pytest.raises(OptionError, match="uint8"):
        backbones.frozen(net, "Conv3d_1a_7x7")(clips[..., :2])
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match=r"device=cuda: this machine shows 0 CUDA"):
            backbones.frozen(net, "mixed4a", device="cuda")
    for precision in ("bf16", "fp16"):
        if not cpu_computes(precision):
            with pytest.raises(OptionError, match=f"precision={precision}: this CPU computes no .* use precision=fp32"):
                backbones.frozen(net, "mixed4a", precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 0.02), ("fp16", 5e-3)])
def test_frozen_on_cuda_equals_the_cpu(net: I3D, clips: torch.Tensor, precision: str, bound: float) -> None:
    expected = backbones.frozen(net, "mixed4a")(clips)
    found = backbones.frozen(net, "mixed4a", precision, device="cuda")
    assert float((found(clips).cpu() - expected).norm() / expected.norm()) < bound
    assert torch.equal(found(clips), found(clips))


def test_the_tail_trains_and_takes_the_checkpoint_by_name(net: I3D) -> None:
    tail = fill(I3DTail(7), net.state_dict(), "random:0", part=True, classifier=I3DTail.classifier)
    whole = dict(net.named_parameters())
    for name, parameter in tail.named_parameters():
        assert torch.equal(parameter, whole[name]) == (name not in tail.classifier)
    tail.train()
    scores, features = tail(torch.rand(2, 480, 3, 4, 4), "mixed5b").values()
    assert (scores.shape, features.shape) == ((2, 7), (2, 832, 2, 2, 2))
    F.cross_entropy(scores, torch.tensor([0, 6])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tail.parameters())
