"""Networks, extraction and flow on a GPU: what they give on the CPU, and within memory that runs out.

Where a test has a twin on the CPU, the twin runs the same code, so that it is right before it meets a GPU.
"""

from __future__ import annotations

import gc
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from gpu_cases import NETWORKS, ON_EACH, pixels, relative
from make_videos import write_moving_squares

import kdcache
from kdcache import backbones
from kdcache.errors import DeviceError
from kdcache.extraction.features import Backbones
from kdcache.motion import tvl1_pairs
from kdcache.motion.tv_l1 import torch_engine
from kdcache.motion.tv_l1.params import TVL1Params
from kdcache.runtime import free_bytes, resolve_precision
from kdcache.store.failures import load_failures
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

BOUNDS = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 5e-3}
SLOW = ("vol2col", "slow_conv", "im2col")


# ---------------------------------------------------------------------------
# networks
# ---------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("name", "layer", "frames", "size"), NETWORKS)
def test_networks_give_what_they_give_on_the_cpu(name, layer, frames, size, precision):
    net = backbones.build(name, "random:0")
    x = pixels(net, frames, size)
    expected = backbones.frozen(net, layer)(x)
    frozen = backbones.frozen(net, layer, precision, device="cuda")
    found = frozen(x)
    assert relative(found, expected) < BOUNDS[precision]
    assert torch.equal(frozen(x), found)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "layer", "frames", "size"), NETWORKS)
def test_compiled_networks_give_what_they_give(name, layer, frames, size, precision):
    """Also as a CUDA graph, from the third batch on."""
    net = backbones.build(name, "random:0")
    x = pixels(net, frames, size)
    expected = backbones.frozen(net, layer)(x)
    compiled = backbones.frozen_layers(net, [layer], precision, "cuda", compile=True)
    for _ in range(3):
        assert relative(compiled.at([layer], x)[0], expected) < BOUNDS[precision]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("name", "layer", "frames", "size"), NETWORKS)
def test_convolutions_are_those_of_cudnn(name, layer, frames, size, precision):
    """Torch's own, taken where cuDNN has none for a layout or a dtype, are many times slower."""
    net = backbones.build(name, "random:0")
    frozen, x = backbones.frozen(net, layer, precision, device="cuda"), pixels(net, frames, size)
    frozen(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        frozen(x)
        torch.cuda.synchronize()
    kernels = {event.key.lower() for event in profile.key_averages()}
    assert kernels
    assert not [kernel for kernel in kernels if any(slow in kernel for slow in SLOW)]


@pytest.mark.gpu
def test_float32_is_no_tf32_whatever_the_process_has_switched_on():
    net = backbones.build("i3d-rgb", "random:0")
    frozen, x = backbones.frozen(net, "mixed4a", device="cuda"), pixels(net, 16, 64)
    expected, before = frozen(x), torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        assert torch.equal(frozen(x), expected)
    finally:
        torch.backends.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_first():
    net = backbones.build("resnet34", "random:0")
    x = pixels(net, 2, 64)
    assert resolve_precision("auto", torch.device("cuda", 1)) in ("bf16", "fp16")
    first, second = (backbones.frozen(net, "layer4", device=f"cuda:{n}")(x) for n in range(2))
    assert second.device.index == 1
    assert relative(first, second) < 1e-5
    flow = torch.zeros(2, 32, 40, dtype=torch.uint8).numpy()
    assert not tvl1_pairs(flow, flow, "torch", device="cuda:1").any()


# ---------------------------------------------------------------------------
# extraction
# ---------------------------------------------------------------------------

STREAM = "i3d-rgb/mixed4a"
SMALL = {"size": 64, "frames": 16, "weights": {"i3d-rgb": "random:0"}, "bar": False}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_moving_squares(folder)
    return folder


def extract(videos, out, **options):
    return kdcache.extract(videos / "clips.csv", videos, out, [STREAM], **SMALL | options)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"workers": 2, "levels": 3, "batch": 4}], ids=["whole clips", "levels"])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:0,cuda:1"])
def test_extraction_gives_what_it_gives_on_the_cpu(videos, tmp_path, device, options):
    """Under the same keys: the other device finds nothing to do. Levels straddle batches."""
    if device.count("cuda") > torch.cuda.device_count():
        pytest.skip("one CUDA device here")
    report = extract(videos, tmp_path / "gpu", device=device, **options)
    assert (report.extracted, report.failures) == (6, [])
    extract(videos, tmp_path / "cpu", device="cpu", **options)
    assert extract(videos, tmp_path / "gpu", device="cpu", **options).cached == 6
    clips = [f"v{n}" for n in range(6)]
    found, expected = (
        torch.from_numpy(np.stack(kdcache.Cache(tmp_path / name).read(STREAM, clips)).astype(np.float32))
        for name in ("gpu", "cpu")
    )
    assert relative(found, expected) < 2e-3  # float16 as it is stored


@pytest.mark.gpu
def test_memory_that_runs_out_halves_the_batch():
    (stream,) = resolve([STREAM], StreamSettings(size=224, frames=64), {"i3d-rgb": "random:0"})
    nets = Backbones([stream], "cuda", 64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6 * 2**30 / total))
    try:
        found = nets.features([np.zeros((1, 64, 224, 224, 3), np.uint8)], stream)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert nets.most is not None
    assert nets.most < 64
    assert found[0].shape[-3:] == (8, 14, 14)


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_ends_the_run_and_fails_no_clip(videos, tmp_path):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(20 * 2**20 / total)
    try:
        with pytest.raises(DeviceError, match="--workers"):
            extract(videos, tmp_path, device="cuda", workers=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert load_failures(tmp_path) == []


@pytest.mark.gpu
def test_memory_that_was_given_back_is_free():
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    gc.collect()
    torch.cuda.empty_cache()
    before = free_bytes(device)
    held = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert free_bytes(device) <= before - 2**30 + 2**21
    del held  # the allocator keeps it
    assert torch.cuda.memory_reserved(device) >= 2**30
    assert abs(free_bytes(device) - before) < 2**26


# ---------------------------------------------------------------------------
# TV-L1
# ---------------------------------------------------------------------------


def moving(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of smooth pictures; each moves by a fraction of a pixel more than the one before, the first not at all."""
    y, x = np.mgrid[:height, :width].astype(np.float32)

    def picture(k: int, shift: float) -> np.ndarray:
        waves = np.sin((x + shift) / (5 + k % 3)) * np.cos((y + shift / 2) / 7) + np.sin((x + y + shift) / 13)
        return (127.5 + 60 * waves).clip(0, 255).astype(np.uint8)

    pairs = [(picture(k, 0.0), picture(k, 0.4 * k)) for k in range(count)]
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def plain(monkeypatch):
    """The engine without Triton's kernels, on whatever device."""

    @contextmanager
    def levels(count, sizes, params, device):
        yield lambda number, *tensors: torch_engine.PlainLevel(*tensors, params)

    monkeypatch.setattr(torch_engine, "_levels", levels)


FAST = TVL1Params(warps=2, outer_iterations=2, inner_iterations=10)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "params",
    [
        FAST,
        TVL1Params(warps=2, outer_iterations=2, inner_iterations=10, median_filtering=3),
        TVL1Params(warps=2, outer_iterations=2, inner_iterations=10, median_filtering=0),
        TVL1Params(nscales=2, warps=1, outer_iterations=2, inner_iterations=5, epsilon=0.0),
    ],
    ids=["median 5", "median 3", "no median", "no stopping"],
)
def test_flow_of_the_fused_kernels_is_that_of_plain_operations(params, monkeypatch):
    """Of three pairs that settle at different times; ``test_triton.py`` has them by the interpreter."""
    first, second = moving(3, 40, 52)
    initial = np.full((3, 40, 52, 2), 0.25, np.float32)
    fused = [tvl1_pairs(first, second, "torch", params, start, device="cuda") for start in (None, initial)]
    plain(monkeypatch)
    expected = [tvl1_pairs(first, second, "torch", params, start, device="cuda") for start in (None, initial)]
    for found, wanted in zip(fused, expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(fused[0][1:]).max() > 0.1


@ON_EACH
def test_more_pairs_than_a_batch_holds(device, monkeypatch):
    first, second = moving(5, 40, 52)
    whole = tvl1_pairs(first, second, "torch", FAST, device=device)
    monkeypatch.setattr(torch_engine, "_BATCH", 2 * 40 * 52)
    np.testing.assert_allclose(tvl1_pairs(first, second, "torch", FAST, device=device), whole, atol=1e-4)


@pytest.mark.gpu
def test_flow_by_graphs_and_in_memory_of_a_batch_before_is_the_same(monkeypatch):
    """To the bit: launched one by one, captured, replayed, and of fewer pairs than the memory was made for."""
    from kdcache.motion.tv_l1 import triton_level

    first, second = moving(7, 40, 52)
    triton_level.forget()
    with monkeypatch.context() as patch:
        patch.setattr(triton_level, "cuda_graphs", lambda device: None)
        expected = tvl1_pairs(first, second, "torch", FAST, device="cuda")
    triton_level.forget()
    graphs = [tvl1_pairs(first, second, "torch", FAST, device="cuda") for _ in range(3)]
    (space,) = triton_level._kept.values()
    assert any(replayed._replay is not None for replayed in space._rounds.values())
    graphs.append(tvl1_pairs(first[:5], second[:5], "torch", FAST, device="cuda"))
    assert list(triton_level._kept.values()) == [space]
    for found in graphs:
        np.testing.assert_array_equal(found, expected[: len(found)])


@pytest.mark.gpu
def test_the_host_waits_for_flow_as_often_as_stated():
    """Once between two outer iterations; what copies to and from the device waits, too."""
    first, second = moving(3, 40, 52)
    params = TVL1Params(nscales=2, warps=2, outer_iterations=3, inner_iterations=2, epsilon=0.0)
    tvl1_pairs(first, second, "torch", params, device="cuda")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            tvl1_pairs(first, second, "torch", params, device="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    copies = 3
    assert len([w for w in waits if "synchronizing" in str(w.message)]) <= 2 * 2 * (3 - 1) + copies


def test_levels_are_asked_whether_they_have_settled_between_two_outer_iterations(monkeypatch):
    """The twin of the test above."""
    asked = []

    class Restless(torch_engine.PlainLevel):
        def advance(self):
            pass

        def settled(self):
            asked.append(len(self.first))
            return len(asked) == 8

    monkeypatch.setattr(torch_engine, "PlainLevel", Restless)
    first, second = moving(3, 40, 52)
    params = TVL1Params(nscales=2, warps=2, outer_iterations=3)
    tvl1_pairs(first, second, "torch", params, device="cpu")
    assert asked == [3] * (2 * 2 * (3 - 1))


@pytest.mark.gpu
def test_flow_of_large_pictures():
    """1080p: 4,080 tiles a pair, whose changes one program adds up."""
    first, second = moving(2, 1080, 1920)
    params = TVL1Params(nscales=2, warps=1, outer_iterations=1, inner_iterations=10)
    found = tvl1_pairs(first, second, "torch", params, device="cuda")
    expected = tvl1_pairs(first, second, "cpu", params)
    assert np.abs(found - expected).mean() < 1e-2


@pytest.mark.gpu
def test_flow_takes_fewer_pairs_where_memory_runs_out(monkeypatch):
    from kdcache.motion.tv_l1 import triton_level

    first, second = moving(64, 256, 340)
    expected = tvl1_pairs(first, second, "torch", FAST, device="cuda")
    triton_level.forget()
    torch.cuda.empty_cache()
    monkeypatch.setattr(torch_engine, "_pairs_at_once", lambda *_: 64)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**28 / total)  # a half of what 64 pairs take
    try:
        found = tvl1_pairs(first, second, "torch", FAST, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)
