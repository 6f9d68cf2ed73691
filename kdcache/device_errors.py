"""How CUDA, its libraries and the allocators of CPUs say that memory is exhausted or that a device is broken."""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdcache.errors import DeviceError, KdcacheError

if TYPE_CHECKING:
    import torch

EXHAUSTED = (
    "out of memory",  # torch's allocator, CUDA, its driver, Triton, HIP
    "out_of_memory",
    "memoryallocation",
    "alloc_failed",  # CUDNN_STATUS_…, CUBLAS_STATUS_…, CUFFT_…
    "allocation_failed",
    "status_not_initialized",  # CUBLAS_…, CUDNN_…: no memory for a handle
    "unable to find an engine",  # cuDNN: no algorithm's workspace could be had
    "unable to find a valid cudnn algorithm",
    "can't allocate memory",  # torch's allocator of CPUs
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "bad allocation",
)
"""Parts of the messages, in lower case. Where one had another cause, the next, smaller attempt fails with it."""

BROKEN = (
    "cuda error",
    "cuda driver error",
    "cuda unknown error",
    "cudnn error",
    "cudnn_status",
    "cublas_status",
    "cusolver_status",
    "cufft_",
    "triton error [",
    "nvidia driver",
    "nvml",
    "uncorrectable ecc",
    "device-side assert",
    "launch failure",
    "hip error",
)


UNMAPPED = (
    "can't start new thread",
    "failed to map segment",
    "insufficient memory",  # cv2
    "storage size calculation overflowed",  # torch
    "unable to allocate",  # numpy
    "could not find/load shared object file",  # llvmlite, when its library could not be mapped
    "error return without exception set",  # llvmlite, when it could not allocate
)
"""Parts of the messages of other libraries where a limit of memory or of threads is reached."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, of a GPU or of this machine."""
    import torch

    if isinstance(error, KdcacheError):
        return False
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _says(error, EXHAUSTED)


def is_broken_device(error: BaseException) -> bool:
    """Whether an error says that a GPU, its driver or a library of it failed; the process cannot use the GPU again."""
    import torch

    if isinstance(error, KdcacheError) or is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _says(error, BROKEN))


def lack_of_memory(error: BaseException) -> KdcacheError | None:
    """The sentence for an exception of any library that means that this machine's memory or threads are exhausted, or
    that was raised because of one; None for others. Imports no torch."""
    following: BaseException | None = error
    while following is not None and not isinstance(following, KdcacheError):
        text = str(following).lower()
        if isinstance(following, MemoryError) or any(part in text for part in (*EXHAUSTED, *UNMAPPED)):
            return KdcacheError(
                f"There is not enough memory ({_first_line(following)[:200]}): allow more, or take fewer workers or a "
                "smaller batch; what was finished is kept, and the same command goes on."
            )
        following = following.__cause__ or following.__context__
    return None


def _says(error: BaseException, parts: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(part in text for part in parts)


def release_memory(device: str | torch.device) -> None:
    """Give back what no tensor holds any more, to other processes too.

    Call it after the ``except`` block: inside, the error's traceback keeps the tensors of the frames that failed.
    """
    gc.collect()
    if str(device) != "cpu":
        import torch

        torch.cuda.empty_cache()  # does nothing where CUDA is not in use


@contextmanager
def device_errors(device: str | torch.device, what: str, remedy: str) -> Iterator[None]:
    """Inside, a memory that is exhausted and a device that is broken become a ``DeviceError`` of one sentence.

    Args:
        device: on which is computed inside.
        what: does not fit, the beginning of the sentence.
        remedy: what to do where memory is exhausted, the end of the sentence.
    """
    where = "this machine" if str(device) == "cpu" else str(device)
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise DeviceError(f"{what} does not fit into the memory of {where}{_cause(error)}: {remedy}.") from error
        if is_broken_device(error):
            raise DeviceError(
                f"{where} failed ({_first_line(error)}): see what nvidia-smi says of it, then run the same command "
                "again, which goes on from what is saved."
            ) from error
        raise


def _cause(error: BaseException) -> str:
    """The library's words, where they may mean something else."""
    import torch

    certain = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "memory" in str(error).lower()
    return "" if certain else f" ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
