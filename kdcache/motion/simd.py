"""Arithmetic on vectors of float32 written as Python arithmetic: run while Numba compiles, it emits instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numba.extending import intrinsic

_numba: Any = config
_codegen: Any = codegen


def _count() -> int:
    """Lanes of a vector: what fills one register with AVX-512, and with AVX; no value depends on it."""
    features = _codegen.get_host_cpu_features() if _numba.CPU_FEATURES is None else _numba.CPU_FEATURES
    return 16 if "+avx512f" in features.split(",") else 8


COUNT = _count()
FLOATS = ir.VectorType(ir.FloatType(), COUNT)
INTEGERS = ir.VectorType(ir.IntType(32), COUNT)
INDEX = ir.IntType(64)


Number = float | np.float32
declared: Any = cgutils.get_or_insert_function
_tuple_of: Any = types.UniTuple


class Lanes:
    """``COUNT`` float32 (or int32, or truth) values while code for them is emitted."""

    __array_ufunc__ = None  # numpy scalars leave arithmetic with lanes to the lanes

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def of(self, other: Lanes | Number) -> Lanes:
        """``other`` as lanes: itself, or a constant in every lane."""
        if isinstance(other, Lanes):
            return other
        kind = int if self.value.type == INTEGERS else float
        return Lanes(self.builder, ir.Constant(self.value.type, [kind(other)] * COUNT))

    def _apply(self, instruction: str, left: Lanes, right: Lanes) -> Lanes:
        prefix = "" if left.value.type == INTEGERS else "f"
        return Lanes(self.builder, getattr(self.builder, prefix + instruction)(left.value, right.value))

    def __add__(self, other: Lanes | Number) -> Lanes:
        return self._apply("add", self, self.of(other))

    def __sub__(self, other: Lanes | Number) -> Lanes:
        return self._apply("sub", self, self.of(other))

    def __mul__(self, other: Lanes | Number) -> Lanes:
        return self._apply("mul", self, self.of(other))

    def __truediv__(self, other: Lanes | Number) -> Lanes:
        return self._apply("div", self, self.of(other))

    def __radd__(self, other: Number) -> Lanes:
        return self.of(other) + self

    def __rsub__(self, other: Number) -> Lanes:
        return self.of(other) - self

    def __rmul__(self, other: Number) -> Lanes:
        return self.of(other) * self

    def __rtruediv__(self, other: Number) -> Lanes:
        return self.of(other) / self

    def __neg__(self) -> Lanes:
        return Lanes(self.builder, self.builder.fneg(self.value))

    def __lt__(self, other: Lanes | Number) -> Lanes:
        return Lanes(self.builder, self.builder.fcmp_ordered("<", self.value, self.of(other).value))

    def __gt__(self, other: Lanes | Number) -> Lanes:
        return Lanes(self.builder, self.builder.fcmp_ordered(">", self.value, self.of(other).value))


def _call(name: str, *arguments: Lanes) -> Lanes:
    builder = arguments[0].builder
    signature = ir.FunctionType(FLOATS, [FLOATS] * len(arguments))
    function = declared(builder.module, signature, f"llvm.{name}.v{COUNT}f32")
    return Lanes(builder, builder.call(function, [argument.value for argument in arguments]))


def fma(a: Lanes, b: Lanes | Number, c: Lanes | Number) -> Lanes:
    """``a * b + c``, rounded once."""
    return _call("fma", a, a.of(b), a.of(c))


def sqrt(a: Lanes) -> Lanes:
    """Square root, correctly rounded."""
    return _call("sqrt", a)


def floor(a: Lanes) -> Lanes:
    """The next whole number below, still as float32."""
    return _call("floor", a)


def whole(a: Lanes) -> Lanes:
    """Float32 lanes that hold whole numbers, as int32."""
    return Lanes(a.builder, a.builder.fptosi(a.value, INTEGERS))


def choose(condition: Lanes, yes: Lanes, no: Lanes | Number) -> Lanes:
    """``yes`` in the lanes where the condition holds, ``no`` in the others."""
    return Lanes(yes.builder, yes.builder.select(condition.value, yes.value, yes.of(no).value))


def order(a: Lanes, b: Lanes | Number) -> tuple[Lanes, Lanes]:
    """The smaller and the larger of two values, lane by lane."""
    b = a.of(b)
    return choose(a < b, a, b), choose(a < b, b, a)


def _bicubic(typing: Any, texture: Any, start: Any, stride: Any, across: Any, down: Any) -> Any:
    """Weighted sum of 4 × 4 texels of 4 channels, all channels at once; the first three are returned.

    ``texture`` is flat float32, ``start`` the index of the first texel's first channel, ``stride`` the floats
    between rows, ``across`` and ``down`` four float32 weights each. Rows are summed first, each from its
    first texel on with fused multiply-adds, as OpenCV 5 does.
    """
    quad = ir.VectorType(ir.FloatType(), 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fused = declared(builder.module, ir.FunctionType(quad, [quad] * 3), "llvm.fma.v4f32")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        weights = [[_quad(builder, quad, builder.extract_value(packed, k)) for k in range(4)] for packed in args[3:]]
        total = ir.Constant(quad, None)
        for row in range(4):
            at = builder.add(args[1], builder.mul(args[2], ir.Constant(INDEX, row)))
            line = ir.Constant(quad, None)
            for column in range(4):
                place = builder.gep(data, [builder.add(at, ir.Constant(INDEX, 4 * column))])
                texel = builder.load(builder.bitcast(place, quad.as_pointer()), align=4)
                line = builder.call(fused, [weights[0][column], texel, line])
            total = builder.call(fused, [weights[1][row], line, total])
        values = [builder.extract_element(total, ir.Constant(ir.IntType(32), channel)) for channel in range(3)]
        return context.make_tuple(builder, signature.return_type, values)

    four = _tuple_of(types.float32, 4)
    return _tuple_of(types.float32, 3)(texture, types.intp, types.intp, four, four), generate


def _quad(builder: Any, quad: Any, value: Any) -> Any:
    single = builder.insert_element(ir.Constant(quad, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4))


bicubic: Callable[..., Any] = intrinsic(_bicubic)
