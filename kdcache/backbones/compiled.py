"""Networks compiled by ``torch.compile``: what lies between convolutions becomes few kernels, made for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from kdcache.device_errors import is_broken_device, is_out_of_memory
from kdcache.errors import OptionError, raised

T = TypeVar("T")

VARIANTS = 256  # shapes and networks; torch itself takes 8 of a process and runs others as they are, without an error


def compiled(function: Callable[..., T], whose: str) -> Callable[..., T]:
    """The same function, compiled at the first call with each shape. It must be pure, on tensors.

    Results differ from the function's own in the last digits of the precision at most. ``OptionError`` where it cannot
    be compiled: no compiler here, a GPU too old for Triton, or a network that torch cannot follow.
    """
    own: Callable[..., T] = torch.compile(function, dynamic=False)

    def call(*arguments: Any) -> T:
        from torch import _dynamo  # slow to import

        limits: Any = _dynamo.config  # untyped
        try:
            with limits.patch(recompile_limit=VARIANTS):
                return own(*arguments)
        except RuntimeError as error:
            if not _of_compiler(error) or is_out_of_memory(error) or is_broken_device(error):
                raise
            inner = getattr(error, "inner_exception", error)  # torch's own first line names the compiler alone
            cause = raised(inner if inner.__traceback__ else error)
            raise OptionError(f"{whose} cannot be compiled here ({cause}): leave --compile out.") from error

    return call


def refuse_on_cpu(device: str) -> None:
    """``OptionError`` where networks would run on the CPU: oneDNN's own convolutions are what is fast there."""
    if device == "cpu":
        raise OptionError("Networks are compiled for a GPU alone: leave --compile out, or choose another --device.")


def _of_compiler(error: RuntimeError) -> bool:
    return type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))
