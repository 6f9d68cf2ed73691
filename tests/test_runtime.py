"""Devices, precisions, cores, memory, determinism: right on every machine, or refused by name."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pairs_cache
import pytest
import torch
from make_videos import pictures, write

import kdcache
from kdcache import backbones, runtime
from kdcache.errors import DeviceError, OptionError
from kdcache.runtime import cores, cpu_computes, free_bytes, resolve_device, resolve_precision

CPU = torch.device("cpu")
REFUSED = "precision=bf16: this CPU computes no bf16 .*: use precision=fp32"
OTHER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # what x86 CPUs without AVX-512 offer


def python(code: str, *arguments: str, **environment: str) -> str:
    """What a program prints in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_devices_are_resolved():
    assert resolve_device("cpu") == CPU
    assert free_bytes(CPU) > 2**20
    with pytest.raises(DeviceError, match="use device=auto or device=cpu"):
        resolve_device("cuda:99")
    for name in ("gp", "cuda:x"):
        with pytest.raises(OptionError, match="Unknown device"):
            resolve_device(name)
    with pytest.raises(OptionError, match=r"^device=gpu:1: a GPU is called cuda:1 here\.$"):
        resolve_device("gpu:1")


def test_precisions_are_resolved():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("fp32", CPU) == "fp32"
    with pytest.raises(OptionError, match="did you mean 'bf16'"):
        resolve_precision("b16", CPU)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_is_computed_or_refused(precision):
    """What the probe says holds for the layers that the package runs: oneDNN's convolutions, training LSTMs."""

    def train() -> None:
        layer = torch.nn.LSTM(8, 8, num_layers=2)
        with torch.autocast("cpu", dtype=runtime.torch_dtype(precision)):
            out, _ = layer(torch.randn(5, 3, 8))
        out.float().sum().backward()

    def convolve() -> None:
        image = torch.zeros(1, 3, 4, 16, 16, dtype=runtime.torch_dtype(precision))
        torch.mkldnn_convolution(image, image.new_zeros(8, 3, 3, 3, 3), None, (1,) * 3, (2,) * 3, (1,) * 3, 1)

    works = []
    for layer in (train, convolve):
        try:
            layer()
            works.append(True)
        except RuntimeError:
            works.append(False)
    assert cpu_computes(precision) == all(works)
    if cpu_computes(precision):
        assert resolve_precision(precision, CPU) == precision
    else:
        with pytest.raises(OptionError, match=f"precision={precision}: this CPU computes no {precision} .*=fp32"):
            resolve_precision(precision, CPU)


def test_bf16_is_refused_on_a_cpu_without_the_instructions():
    code = (
        "import torch\n"
        "from kdcache.runtime import resolve_precision\n"
        "before = torch.get_rng_state()\n"
        "try:\n"
        "    print(resolve_precision('bf16', torch.device('cpu')))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "assert torch.equal(before, torch.get_rng_state())\n"  # probing changes nothing in what follows
        "try:\n"
        "    image = torch.zeros(1, 3, 2, 8, 8, dtype=torch.bfloat16)\n"
        "    torch.mkldnn_convolution(image, image[:, :, :1, :3, :3], None, (0,) * 3, (1,) * 3, (1,) * 3, 1)\n"
        "    print('oneDNN runs')\n"
        "except RuntimeError:\n"
        "    print('oneDNN refuses')\n"
    )
    answer, convolution = python(code, **OTHER_CPU).splitlines()
    assert answer.startswith("OptionError precision=bf16: this CPU computes no bf16") == (
        convolution == "oneDNN refuses"
    )


def test_emulated_bf16_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(runtime, "cpu_computes", lambda precision: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    runtime._warn_of_emulation.cache_clear()
    with caplog.at_level(logging.WARNING, "kdcache"):
        assert [resolve_precision("bf16", CPU) for _ in range(2)] == ["bf16", "bf16"]
    assert [record.getMessage() for record in caplog.records] == [
        "precision=bf16: this CPU emulates bf16, which is slower than precision=fp32."
    ]
    runtime._warn_of_emulation.cache_clear()


def test_extraction_refuses_bf16_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "cpu_computes", lambda precision: precision == "fp32")
    write(tmp_path / "a.mp4", pictures(10))
    (tmp_path / "clips.csv").write_text("clip_id,source,start_s,stop_s\na,a.mp4,,\n")
    with pytest.raises(OptionError, match=REFUSED):
        kdcache.extract(
            tmp_path / "clips.csv",
            root=tmp_path,
            out=tmp_path / "out",
            streams=["resnet34/pool"],
            weights={"resnet34": "random:0"},
            precision="bf16",
            size=32,
            short_side=32,
            bar=False,
        )


def test_training_refuses_bf16_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "cpu_computes", lambda precision: precision == "fp32")
    pairs_cache.cache(tmp_path / "out")
    with pytest.raises(OptionError, match=REFUSED):
        kdcache.train("anticipation", shards=tmp_path / "out", out=tmp_path / "run", precision="bf16", device="cpu")


def test_frozen_backbones_refuse_bf16_by_name(monkeypatch):
    monkeypatch.setattr(runtime, "cpu_computes", lambda precision: precision == "fp32")
    with pytest.raises(OptionError, match=REFUSED):
        backbones.frozen(backbones.build("vacnn", weights="random:0"), "pool", "bf16")


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


@pytest.mark.parametrize(
    ("said", "workers", "threads"),
    [("", 1, 8), ("", 3, 2), ("", 20, 1), ("1", 1, 1), ("3", 2, 3), ("6", 2, 4), ("2,1", 1, 2), ("many", 2, 4)],
)
def test_workers_share_the_cores_and_heed_the_environment(said, workers, threads, monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert runtime.threads_of_each(workers) == threads


def test_an_extraction_takes_no_more_threads_than_the_environment_says(monkeypatch, tmp_path):
    write(tmp_path / "a.avi", pictures(8), "ffv1")
    (tmp_path / "clips.csv").write_text("clip_id,source,start_s,stop_s\na,a.avi,,\n")
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    for said, threads in (("1", 1), ("2", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        report = kdcache.extract(tmp_path / "clips.csv", tmp_path, tmp_path / said, ["rgb"], workers=1, bar=False)
        assert (report.extracted, report.threads) == (1, threads)


def test_runtime_is_imported_without_torch():
    code = "import sys, kdcache.runtime, kdcache.log; kdcache.runtime.cores(); print('torch' in sys.modules)"
    assert python(code).strip() == "False"


def test_what_is_compiled_needs_no_folder_to_write_to(tmp_path):
    """Improved dense trajectories where Numba has no place for its cache: the same code, compiled in this process."""
    code = (
        "import numpy as np\n"
        "from numba.core import caching\n"
        "for locator in caching.CacheImpl._locator_classes:\n"  # what a read-only package and no home lead to
        "    locator.from_function = classmethod(lambda cls, function, path: None)\n"
        "from kdcache.motion.camera import homography\n"
        "from kdcache.motion._farneback_kernels import expand, _pad\n"
        "row = np.arange(9, dtype=np.float32)\n"
        "_pad(row, 2)\n"
        "print(row.tolist(), expand.stats.cache_path)\n"
    )
    text = python(code)
    assert text.split("] ")[0] + "]" == "[2.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0, 6.0]"
    assert text.strip().endswith("None")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "rubbish"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_containers_share_of_the_processor_bounds_the_cores(files, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(runtime, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(runtime, "_visible_cores", lambda: 8)
    assert runtime.cores() == expected
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # noted, so that what is set below is put back
        monkeypatch.delenv(name)
    runtime.share_processor()
    assert os.environ.get("OMP_NUM_THREADS") == (None if expected == 8 else str(expected))
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_what_the_user_has_set_about_threads_stays(monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 1)
    monkeypatch.setattr(runtime, "_visible_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    runtime.share_processor()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "GOMP_SPINCOUNT" not in os.environ
