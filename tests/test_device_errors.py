"""Exhausted memory and broken devices: recognised in whatever words they are told, errors of the run and of no clip."""

from __future__ import annotations

import errno
import weakref
from types import SimpleNamespace

import click
import numpy as np
import own_networks
import pytest
import torch
from make_videos import write_moving_squares

import kdcache
from kdcache import backbones
from kdcache.cli.common import sentences
from kdcache.device_errors import device_errors, is_broken_device, is_out_of_memory
from kdcache.errors import BackboneError, DeviceError, OptionError
from kdcache.extraction import features as features_module
from kdcache.extraction.features import Backbones
from kdcache.store.failures import load_failures
from kdcache.streams.backbone import BackboneStream
from kdcache.streams.registry import resolve
from kdcache.streams.settings import StreamSettings

STREAM = "i3d-rgb/mixed4a"

EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 3.2 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
BROKEN = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle, opa, opb)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Found no NVIDIA driver on your system."),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    ValueError("CUDA out of memory"),  # no library raises it so
    OSError(errno.ENOENT, "No such file or directory"),
    OptionError("the stream does not fit: out of memory"),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=str)
def test_exhausted_memory_is_recognised(error):
    assert is_out_of_memory(error)
    assert not is_broken_device(error)
    with pytest.raises(DeviceError, match=r"^A batch does not fit into the memory of cuda:1[^\n]*: take less\.$"):
        with device_errors("cuda:1", "A batch", "take less"):
            raise error


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_broken_device_is_recognised(error):
    assert is_broken_device(error)
    assert not is_out_of_memory(error)
    with pytest.raises(DeviceError, match=r"^cuda:1 failed \([^\n]*\): see what nvidia-smi says of it, [^\n]*$"):
        with device_errors("cuda:1", "A batch", "take less"):
            raise error


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_stay_what_they_are(error):
    assert not is_out_of_memory(error)
    assert not is_broken_device(error)
    with pytest.raises(type(error)) as caught, device_errors("cpu", "A batch", "take less"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        ImportError("_imaging.so: failed to map segment from shared object"),
        OSError("Could not find/load shared object file 'libllvmlite.so'"),
        SystemError("error return without exception set"),
    ],
)
def test_limits_of_memory_and_threads_are_one_sentence_of_a_command(error):
    with pytest.raises(click.ClickException, match=r"^There is not enough memory \([^\n]+\): allow more"), sentences():
        raise error
    with pytest.raises(SystemError, match="bad argument"), sentences():
        raise SystemError("bad argument to internal function")


def test_memory_that_really_is_exhausted_is_recognised():
    """What this build's allocator says of more bytes than any machine has."""
    with pytest.raises(DeviceError, match="the memory of this machine"), device_errors("cpu", "It", "take less"):
        torch.empty(2**55, dtype=torch.uint8)
    with pytest.raises(DeviceError), device_errors("cpu", "It", "take less"):
        np.empty(2**55, np.uint8)


# ---------------------------------------------------------------------------
# extraction
# ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream() -> BackboneStream:
    (only,) = resolve([STREAM], StreamSettings(size=32, frames=8), {"i3d-rgb": "random:0"})
    assert isinstance(only, BackboneStream)
    return only


def networks(stream, compute, monkeypatch, batch: int = 8) -> Backbones:
    """A worker's networks with ``compute`` in place of the frozen one."""
    monkeypatch.setattr(backbones, "build", lambda *args: None)
    frozen = SimpleNamespace(at=lambda layers, rows: [compute(rows)])
    monkeypatch.setattr(backbones, "frozen_layers", lambda *args, **options: frozen)
    return Backbones([stream], "cpu", batch)


def clip() -> np.ndarray:
    return np.ones((1, 8, 32, 32, 3), np.uint8)


def maps(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), 480, 2, 2, 2)


@pytest.mark.parametrize("error", [e for e in EXHAUSTED if not isinstance(e, OSError)], ids=str)
def test_every_form_of_exhausted_memory_halves_the_batch(stream, error, monkeypatch):
    seen = []

    def limited(x):
        seen.append(len(x))
        if len(x) > 2:
            raise error
        return maps(x)

    nets = networks(stream, limited, monkeypatch)
    found = nets.features([clip()] * 5, stream)
    assert seen == [8, 4, 2, 2, 2]
    assert all(np.array_equal(f, np.ones((1, 480, 2, 2, 2), np.float16)) for f in found)
    assert nets.most == 2  # the next clips do not try again


@pytest.mark.parametrize("error", [EXHAUSTED[0], EXHAUSTED[5], BROKEN[0]], ids=str)
def test_one_segment_that_does_not_fit_is_the_devices_fault(stream, error, monkeypatch):
    def failing(x):
        raise error

    nets = networks(stream, failing, monkeypatch)
    expected = "failed" if error in BROKEN else r"one segment does not fit into .*: take fewer --workers"
    with pytest.raises(DeviceError, match=expected):
        nets.features([clip()], stream)


def test_memory_is_released_after_the_failed_tensors_are_gone(stream, monkeypatch):
    """Within ``except`` the traceback would still hold the activations, and nothing could be given back."""
    held, gone = [], []

    def failing(x):
        activation = x.float() * 2
        held.append(weakref.ref(activation))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return maps(x)

    monkeypatch.setattr(features_module, "release_memory", lambda device: gone.append([r() is None for r in held]))
    nets = networks(stream, failing, monkeypatch, batch=4)
    nets.features([clip()], stream)
    assert gone == [[True], [True, True]]


RAISED = r"its network failed with KeyError in .*own_networks.py:\d+ \('a key"


@pytest.mark.parametrize(
    ("workers", "fault", "kind", "expected"),
    [
        (2, own_networks.EXHAUSTED, DeviceError, "one segment does not fit .* --workers"),
        (1, own_networks.BROKEN, BackboneError, RAISED),
        (2, own_networks.BROKEN, BackboneError, RAISED),
    ],
)
def test_a_forward_that_fails_is_no_failure_of_the_clips(workers, fault, kind, expected, tmp_path, monkeypatch):
    """The run ends at once, and nothing is listed that a later call would skip."""
    videos = tmp_path / "videos"
    videos.mkdir()
    write_moving_squares(videos)
    monkeypatch.setenv(fault, "1")
    stream = f"{backbones.allow('own_networks:video')}/second"

    def extract(**options):
        options |= {"device": "cpu", "bar": False}
        return kdcache.extract(videos / "clips.csv", videos, tmp_path / "out", [stream], **options)

    with pytest.raises(kind, match=rf"{stream}: {expected}"):
        extract(workers=workers)
    assert load_failures(tmp_path / "out") == []
    monkeypatch.delenv(fault)
    again = extract()
    assert (again.extracted, again.failures) == (6, [])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((32, 224, 224, 3), 8), ((64, 224, 224, 3), 4), ((8, 224, 224, 3), 32), ((1, 224, 224, 3), 256), ((50_000,), 256)],
)
def test_a_gpu_is_given_batches_of_about_one_size_in_bytes(stream, shape, expected, monkeypatch):
    networks(stream, maps, monkeypatch)
    nets = Backbones([stream], "cuda:0", None)
    assert nets.size(np.empty((3, *shape), np.uint8)) == expected
    assert Backbones([stream], "cuda:0", 6).size(np.empty((3, *shape), np.uint8)) == 6
    assert Backbones([stream], "cpu", None).size(np.empty((3, *shape), np.uint8)) == 1
    nets.most = 2
    assert nets.size(np.empty((3, *shape), np.uint8)) == 2


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"), OSError()])
def test_what_a_network_raises_names_the_network(stream, error, monkeypatch):
    def failing(x):
        raise error

    nets = networks(stream, failing, monkeypatch)
    with pytest.raises(BackboneError, match=rf"^{STREAM}: its network failed with {type(error).__name__} in [^\n]*$"):
        nets.features([clip()], stream)
    assert nets.most is None  # it is not tried again with less
