"""Where and how things are computed: device, precision, cores, memory, determinism. Imports no torch until asked."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.errors import DeviceError, OptionError, unknown

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``; ``DeviceError`` for one that is not there."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if there else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cpu":
        return torch.device("cpu")
    if int(number or 0) >= there:
        raise DeviceError(f"device={name}: this machine shows {there} CUDA device(s); use device=auto or device=cpu.")
    return torch.device("cuda", int(number or 0))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def without_main() -> Iterator[None]:
    """Keep a process that is spawned inside from running the user's script again: it needs nothing of it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` is fp32 on a CPU and bf16 on a GPU (fp16 on one that computes no bf16)."""
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name not in PRECISIONS:
        raise unknown("precision", name, ["auto", *PRECISIONS])
    return name


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[None]]:
    """The context in which networks run: nothing for fp32, automatic mixed precision otherwise."""
    import torch

    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of this machine and of the container around it."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available(), _container()]
    known = [value for value in free if value is not None]
    if not known:
        raise OptionError("The free memory of this system cannot be told: set hold=0 to read from the shards.")
    return min(known)


def _available() -> int | None:
    """What the kernel says is available; where it says nothing, half of the installed memory."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _container() -> int | None:
    """What is left under the memory limit of this process's control group, if it has one."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (root / limit).exists() and (root / used).exists():
            text = (root / limit).read_text().strip()
            return None if text == "max" else max(0, int(text) - int((root / used).read_text()))
    return None


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Inside: deterministic algorithms on a CPU; on a GPU the fastest convolutions, whose last bits may vary."""
    import torch

    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
