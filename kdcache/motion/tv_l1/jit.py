"""Compiling for the CPU so that the same input gives the same bytes, whoever compiles it and when.

No fast-math flag is set anywhere: LLVM may then neither reorder a sum nor contract a product, so vectors,
remainders, cached and fresh code all round alike. Where a fused multiply-add is wanted it is called by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit, types
from numba.extending import intrinsic

from kdcache.motion.jit import cached_njit

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(function: F) -> F:
    """Compile a function for use in compiled code."""
    return cast(F, njit(**_OPTIONS)(function))


def spliced(function: F) -> F:
    """Compile as part of whatever calls it: for code that only calls kernels.

    Each level of compiled calls optimises all code below it once more, so the levels are kept few.
    """
    return cast(F, njit(inline="always", **_OPTIONS)(function))


def entry(function: F) -> F:
    """Compile an entry point and cache its machine code where there is a place for it.

    Numba checks only the entry point's own file for changes, so ``function`` must close over
    ``sources_digest()``: the values of a closure are part of Numba's cache key.
    """
    return cached_njit(**_OPTIONS)(function)


def sources_digest() -> str:
    """Digest of this package's sources."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` of float32 values, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


fma: Callable[..., Any] = intrinsic(_fma)
