"""The machine code behind ``kdcache.methods.heads.cells`` on a CPU: each map is read once."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic
from torch import Tensor

from kdcache.motion.jit import cached_njit

_HALF = np.float32(0.5)
_WIDEN = """
define float @widen(half %x) {
  %wide = fpext half %x to float
  ret float %wide
}"""


@functools.cache
def widens() -> bool:
    """Whether the processor that Numba compiles for turns half precision into single by an instruction of its own.

    Where it has none the compiler would call a function, which need not be there.
    """
    settings: Any = config
    own = not settings.CPU_NAME
    name = binding.get_host_cpu_name() if own else settings.CPU_NAME
    features = settings.CPU_FEATURES or (binding.get_host_cpu_features().flatten() if own else "")
    machine = binding.Target.from_default_triple().create_target_machine(cpu=name, features=features)
    return "__" not in machine.emit_assembly(binding.parse_assembly(_WIDEN))


def average_cells(x: Tensor, out: Tensor) -> None:
    """float16 or float32 ``[channels, l, h, w]`` → float32 ``[channels, ⌈l/2⌉, ⌈h/2⌉, ⌈w/2⌉]``, both contiguous."""
    if x.dtype == torch.float16 and widens():
        _average(x.view(torch.uint16).numpy(), out.numpy())
    else:
        _average(x.float().numpy(), out.numpy())


def _widening(typing: Any, value: Any) -> Any:
    """A number as float32: that itself, or the bits of one of half precision, uint16."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if value == types.float32:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), emit


_wide: Any = intrinsic(_widening)


@cached_njit(nogil=True)
def _average(x: Any, out: Any) -> None:
    """Sums in the order of time, height, width; a position at an odd end is averaged with itself.

    Whole planes are added, where the compiler makes vectors of it: rows are too short for that.
    """
    channels, times, height, width = x.shape
    rows, columns = out.shape[2:]
    size, cells = height * width, rows * columns
    whole = height // 2 * columns  # cells of two rows
    planes, averages = x.reshape(channels, times, size), out.reshape(channels, out.shape[1], cells)
    left, right = np.empty(cells, np.int64), np.empty(cells, np.int64)
    for row in range(rows):
        for column in range(columns):
            first = 2 * row * width
            left[row * columns + column] = first + 2 * column
            right[row * columns + column] = first + min(2 * column + 1, width - 1)
    # positions, and averages of each with that below it
    one, two = np.zeros(size + width, np.float32), np.empty(size, np.float32)
    below = one[width:]
    for c in range(channels):
        for t in range(out.shape[1]):
            now, after = planes[c, 2 * t], planes[c, min(2 * t + 1, times - 1)]
            for i in range(size):
                one[i] = (_wide(now[i]) + _wide(after[i])) * _HALF
            for i in range(size):
                two[i] = (one[i] + below[i]) * _HALF
            cell = averages[c, t]
            for j in range(whole):
                cell[j] = (two[left[j]] + two[right[j]]) * _HALF
            for j in range(whole, cells):
                cell[j] = (one[left[j]] + one[right[j]]) * _HALF
