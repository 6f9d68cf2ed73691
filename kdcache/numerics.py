"""torch's global switches of precision and order: set for a while, then put back as they were found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from kdcache.errors import KdcacheError, OptionError

if TYPE_CHECKING:
    import torch

_DEFAULTS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_OPERATIONS = tuple((backend, op) for backend in ("cuda", "mkldnn") for op in ("conv", "rnn", "matmul"))
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_OF_STACK = "kdcache_of_stack"
F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, float32 is computed as float32, and products of half-precision numbers are summed in float32.

    By default torch computes float32 convolutions and recurrent layers on a GPU in TF32 (10 bits), and users may have
    switched that on for everything, by the older or the newer of torch's two interfaces, on CPUs too.
    """
    with _float32_as_such(), _sums_in_float32():
        yield


@contextmanager
def deterministic_cudnn() -> Iterator[None]:
    """Inside, cuDNN takes deterministic algorithms, the same for the same shapes."""
    import torch

    flags: Any = torch.backends.cudnn
    found = flags.enabled, flags.benchmark, flags.deterministic
    flags.enabled, flags.benchmark, flags.deterministic = True, False, True
    try:
        yield
    finally:
        flags.enabled, flags.benchmark, flags.deterministic = found


@contextmanager
def reproducible(device: torch.device, deterministic: bool = False) -> Iterator[None]:
    """Inside: full precision; deterministic algorithms on a CPU and, where asked for, on a GPU.

    On a GPU the fastest convolutions are taken otherwise, whose last bits may vary. Afterwards the process has the
    settings that it had before.

    Raises:
        OptionError: an operation inside has no deterministic algorithm on a GPU.
    """
    import torch

    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)
    deterministic = deterministic or device.type == "cpu"
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault(WORKSPACE, ":4096:8")  # cuBLAS adds up in one order only with a workspace of its own
    try:
        with full_precision():
            yield
    except RuntimeError as error:
        if "not have a deterministic implementation" not in str(error) or isinstance(error, KdcacheError):
            raise
        operation = str(error).split()[0]
        raise OptionError(
            f"deterministic=true: {operation} has no deterministic algorithm on {device}: leave the option out, or "
            "train with device=cpu."
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def no_autocast(x: torch.Tensor) -> AbstractContextManager[None]:
    """Inside, operations on tensors of the device of ``x`` compute in the dtypes that these have.

    Under automatic mixed precision a product of float32 tensors is rounded to half precision.
    """
    import torch

    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)  # the meta device has none


@contextmanager
def _float32_as_such() -> Iterator[None]:
    older = _older_interface()
    with ExitStack() as found:  # put back from the last to the first
        for key in _DEFAULTS:  # of these, operations inherit what they have not set themselves
            found.callback(_set, key, _get(key))
            _set(key, "none")
        for key in _OPERATIONS:
            found.callback(_set, key, _get(key))
        for setter, value, off in older:
            found.callback(setter, value)
            setter(off)
        for key in _OPERATIONS:
            _set(key, "ieee")
        yield


def _older_interface() -> list[tuple[Callable[[Any], None], Any, Any]]:
    """Setters of the older interface, what they are set to, and what switches TF32 off.

    It has flags of its own beside those of the newer one, and whatever asks for them raises where the two contradict
    each other: both are switched off, except where that was so already.
    """
    import torch

    known: list[tuple[Callable[[Any], None], Any, Any]] = []
    with suppress(RuntimeError):
        known.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest"))
    with suppress(RuntimeError):
        known.append((torch._C._set_cudnn_allow_tf32, torch._C._get_cudnn_allow_tf32(), False))
    return known


def _get(key: tuple[str, str]) -> str:
    import torch

    return str(torch._C._get_fp32_precision_getter(*key))


def _set(key: tuple[str, str], value: str) -> None:
    import torch

    torch._C._set_fp32_precision_setter(*key, value)


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    import torch

    matmul: Any = torch.backends.cuda.matmul
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    found = {name: (getattr(matmul, name), getattr(matmul, f"{name}_split_k")) for name in names}
    accumulation = matmul.allow_fp16_accumulation
    try:
        for name in names:
            setattr(matmul, name, False)
        matmul.allow_fp16_accumulation = False
        yield
    finally:
        for name, values in found.items():
            setattr(matmul, name, values)
        matmul.allow_fp16_accumulation = accumulation


def stacked(of_stack: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[F], F]:
    """Give a function of one float32 array a second one for several at once, a stack of float32 or float16 arrays; it
    returns the stack of the same results, only sooner."""

    def mark(fn: F) -> F:
        setattr(fn, _OF_STACK, of_stack)
        return fn

    return mark


def of_stack(fn: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The second function, if there is one."""
    return getattr(fn, _OF_STACK, None)
