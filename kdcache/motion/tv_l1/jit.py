"""How TV-L1 is compiled for the CPU: as ``kdcache.motion.jit`` does, with fused multiply-adds where they are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit, types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(function: F) -> F:
    """Compile a function for use in compiled code."""
    return cast(F, njit(**OPTIONS)(function))


def spliced(function: F) -> F:
    """Compile as part of whatever calls it: for code that only calls kernels.

    Each level of compiled calls optimises all code below it once more, so the levels are kept few.
    """
    return cast(F, njit(inline="always", **OPTIONS)(function))


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` of float32 values, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


fma: Callable[..., Any] = intrinsic(_fma)
