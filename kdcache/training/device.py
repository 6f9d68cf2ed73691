"""Where a run computes: device, precision, and how much memory is free there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from kdcache.errors import OptionError, unknown

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto`` is fp32 on a CPU and bf16 on a GPU (fp16 on one that computes no bf16)."""
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name not in PRECISIONS:
        raise unknown("precision", name, ["auto", *PRECISIONS])
    return name


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[None]]:
    """The context in which networks run: nothing for fp32, automatic mixed precision otherwise."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of this machine and of the container around it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [_available(), _container()]
    known = [value for value in free if value is not None]
    if not known:
        raise OptionError("The free memory of this system cannot be told: set hold=0 to read from the shards.")
    return min(known)


def _available() -> int | None:
    """What the kernel says is available; where it says nothing, half of the installed memory."""
    import os

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
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
