"""Where and how things are computed: device, precision, cores, memory. Imports no torch until asked."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.errors import DeviceError, OptionError, unknown
from kdcache.log import logger

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
    if kind == "gpu":
        raise OptionError(f"device={name}: a GPU is called {name.replace('gpu', 'cuda')} here.")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0"])
    if kind == "cpu":
        return torch.device("cpu")
    if int(number or 0) >= there:
        raise DeviceError(f"device={name}: this machine shows {there} CUDA device(s); use device=auto or device=cpu.")
    return torch.device("cuda", int(number or 0))


def resolve_devices(names: str) -> list[str]:
    """The devices of an extraction: ``auto`` is all GPUs, or ``cpu``; several GPUs are separated by commas.

    Raises:
        OptionError: an unknown device, one that is named twice, or the CPU beside a GPU.
        DeviceError: one that is not there.
    """
    if names == "auto":
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [f"cuda:{number}" for number in range(there)] or ["cpu"]
    found = [str(resolve_device(name.strip())) for name in names.split(",")]
    if len(set(found)) < len(found) or ("cpu" in found and len(found) > 1):
        raise OptionError(f"device={names}: name each GPU once, as in cuda:0,cuda:1, or take cpu alone.")
    return found


CONTROL_GROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many cores this process may use: those that it may run on, and no more than its container has."""
    share = _processor_share(CONTROL_GROUP)
    return _visible_cores() if share is None else max(1, min(_visible_cores(), math.ceil(share)))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor_share(root: Path) -> float | None:
    """Cores' time that the control group at ``root`` may take (``docker --cpus``); None: no limit."""
    v2, v1 = root / "cpu.max", root / "cpu"
    try:
        if v2.exists():
            quota, period = v2.read_text().split()
        else:
            quota, period = ((v1 / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # "max": no limit; or there are no such groups here
        return None


def share_processor() -> None:
    """Let torch's threads share a machine with others; to be called before torch is imported.

    Threads that wait for each other spin for milliseconds by default (libgomp). Where another program has one of the
    cores, most of the time is spent so: a fit of small networks took four times as long. What the user has set in the
    environment stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if cores() < _visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def worker_count(workers: int | str, bytes_each: int) -> int:
    """How many processes work: as many as were asked for, or for ``auto`` one a core, as far as memory allows.

    Args:
        workers: a number from 1 on, or ``auto``.
        bytes_each: memory that a process takes, as an upper estimate.

    Raises:
        OptionError: something else.
    """
    if workers == "auto":
        free = free_memory()
        return cores() if free is None else max(1, min(cores(), free // bytes_each))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise OptionError(f"workers is {workers!r}: give a number from 1 on, or auto.")
    return workers


def threads_of_each(workers: int) -> int:
    """Threads of each of so many processes: their share of the cores, and no more than ``OMP_NUM_THREADS`` says."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    most = int(first) if first.isdecimal() and int(first) > 0 else cores()
    return max(1, min(cores() // workers, most))


def limit_threads(threads: int) -> None:
    """So many for torch and for OpenCV, whose own would be one a core in every worker process."""
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def decode_threads(workers: int | str, device: torch.device) -> int:
    """How many threads make a batch from sources, which changes nothing about it: as many as were asked for, or for
    ``auto`` one a core beside a GPU, and one where the cores compute; ``OptionError`` for something else."""
    if workers == "auto":
        return 1 if device.type == "cpu" else cores()
    return worker_count(workers, 1)


@contextmanager
def kept_threads() -> Iterator[None]:
    """Afterwards, torch and OpenCV use as many threads in this process as before: extraction sets its own number."""
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def resolve_precision(name: str, device: torch.device) -> str:
    """``auto``: fp32 on a CPU, bf16 on a GPU (fp16 on one that computes no bf16); others are checked on this machine.

    Raises:
        OptionError: an unknown precision, or one in which this CPU cannot run every network.
    """
    if name == "auto":
        if device.type == "cpu":
            return "fp32"  # many CPUs compute bf16 by emulation, slower than fp32
        import torch

        with torch.cuda.device(device):  # the current one is asked, and that may be another
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name not in PRECISIONS:
        raise unknown("precision", name, ["auto", *PRECISIONS])
    if device.type == "cpu" and not cpu_computes(name):
        needs = {"bf16": "AVX-512 or AVX-NE-CONVERT", "fp16": "AVX-512 FP16 or AVX-NE-CONVERT"}[name]
        raise OptionError(
            f"precision={name}: this CPU computes no {name} (an x86 CPU needs {needs}): use precision=fp32, or a GPU."
        )
    if device.type == "cpu" and name == "bf16":
        _warn_of_emulation()
    return name


def torch_dtype(precision: str) -> torch.dtype:
    """The dtype of tensors in a precision that ``resolve_precision`` returned."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@functools.cache
def cpu_computes(precision: str) -> bool:
    """Whether convolutions and recurrent layers run on this CPU in a precision.

    Both are tried, tiny: which instructions they need is known to oneDNN alone, and its answer changes with its
    version, its settings (``ONEDNN_MAX_CPU_ISA``) and the layer. A precision that only one of them has is refused as a
    whole: the other would end in a traceback or take up to a hundred times as long as in fp32.
    """
    if precision == "fp32":
        return True
    import torch

    dtype, zeros = torch_dtype(precision), torch.zeros
    parameters = [zeros(16, 4), zeros(16, 4), zeros(16), zeros(16)]
    state = zeros(1, 1, 4)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
            if onednn_available():
                image, weight = zeros(1, 2, 2, 4, 4, dtype=dtype), zeros(2, 2, 1, 3, 3, dtype=dtype)
                torch.mkldnn_convolution(image, weight, None, (0, 1, 1), (1, 1, 1), (1, 1, 1), 1)
            torch.lstm(zeros(1, 1, 4), (state, state), parameters, True, 1, 0.0, False, False, False)
    except RuntimeError:  # how oneDNN says that it has no kernel
        return False
    return True


@functools.cache
def _warn_of_emulation() -> None:
    """Once a process: where a CPU has AVX-512 but no bf16 arithmetic, values are converted back and forth."""
    from torch import cpu

    if cpu._is_avx512_supported() and not (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()):
        logger.warning("precision=bf16: this CPU emulates bf16, which is slower than precision=fp32.")


def onednn_available() -> bool:
    """Whether this build of torch has oneDNN."""
    import torch

    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def autocast(device: torch.device, precision: str) -> Callable[[], AbstractContextManager[None]]:
    """The context in which networks run: nothing for fp32, automatic mixed precision otherwise."""
    import torch

    if precision == "fp32":
        return nullcontext
    dtype = torch_dtype(precision)
    return lambda: torch.autocast(device.type, dtype=dtype)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of the GPU, or of this machine and of the container around it.

    Of a GPU, what this process has taken and holds no tensors counts as free, up to the limit that it may have
    (``torch.cuda.set_per_process_memory_fraction``).
    """
    if device.type == "cuda":
        import torch

        left, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        limit = int(torch.cuda.get_per_process_memory_fraction(device) * total)
        return max(0, min(left + torch.cuda.memory_reserved(device) - used, limit - used))
    free = free_memory()
    if free is None:
        raise OptionError("The free memory of this system is unknown: set memory_fraction=0 to read from the shards.")
    return free


def free_memory() -> int | None:
    """Bytes that can still be taken on this machine and in the container around it; ``None`` where it is not known."""
    return min((value for value in (_available(), _container()) if value is not None), default=None)


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
    root = CONTROL_GROUP
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (root / limit).exists() and (root / used).exists():
            text = (root / limit).read_text().strip()
            return None if text == "max" else max(0, int(text) - int((root / used).read_text()))
    return None
