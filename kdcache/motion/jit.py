"""Numba's compiler, so that the same input gives the same bytes, with its cache on disk where there is a place for one.

No fast-math flag is set where a result depends on it: LLVM may then neither reorder a sum nor contract a product, so
vectors, remainders, cached and fresh code all round alike.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

from kdcache.log import logger

F = TypeVar("F", bound=Callable[..., Any])


def cached_njit(**options: Any) -> Callable[[F], F]:
    """A decorator that compiles a function at its first call and keeps its machine code for later processes.

    Numba keeps it beside the source, else in the user's cache folder. Where neither can be written (a read-only
    installation and no home), the function is compiled in every process anew, to the same code. It looks at changes of
    the function's own file; of what else is compiled into it the digest is part of the code's name.
    """

    def compile_function(function: F) -> F:
        function.__qualname__ += f"_{_digest()}"
        try:
            return cast(F, njit(cache=True, **options)(function))
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            _tell()
            return cast(F, njit(**options)(function))

    return compile_function


@functools.cache
def _digest() -> str:
    """Of the sources of everything in this folder."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")) if path.is_file())
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:12]


@functools.cache
def _tell() -> None:
    """Once a process."""
    logger.info(
        "Numba finds no folder for compiled code and compiles in every process: set NUMBA_CACHE_DIR to one that it may "
        "write to."
    )
