"""Loops over planes in vectors of 16 float32, written as Python arithmetic.

A loop's body is plain Python over ``Lanes``; running it once, while Numba compiles, emits the vector
instructions. Compared with leaving the loops to LLVM's vectoriser this needs no overlap checks between the
planes (which for ten of them cost more than short rows and most of the compile time), does not depend on a
cost model, and gives the remainder of a row the very same instructions under a mask. LLVM splits the vectors
for narrower machines; no value changes by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

COUNT = 16
_FLOATS = ir.VectorType(ir.FloatType(), COUNT)
_INTEGERS = ir.VectorType(ir.IntType(32), COUNT)
_MASK = ir.VectorType(ir.IntType(1), COUNT)
_INDEX = ir.IntType(64)


Number = float | np.float32
_declared: Any = cgutils.get_or_insert_function
_tuple_of: Any = types.UniTuple


class Lanes:
    """16 float32 (or int32, or truth) values while code for them is emitted."""

    __array_ufunc__ = None  # numpy scalars leave arithmetic with lanes to the lanes

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def of(self, other: Lanes | Number) -> Lanes:
        """``other`` as lanes: itself, or a constant in every lane."""
        if isinstance(other, Lanes):
            return other
        kind = int if self.value.type == _INTEGERS else float
        return Lanes(self.builder, ir.Constant(self.value.type, [kind(other)] * COUNT))

    def _apply(self, instruction: str, left: Lanes, right: Lanes) -> Lanes:
        prefix = "" if left.value.type == _INTEGERS else "f"
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
    signature = ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments))
    function = _declared(builder.module, signature, f"llvm.{name}.v{COUNT}f32")
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
    return Lanes(a.builder, a.builder.fptosi(a.value, _INTEGERS))


def choose(condition: Lanes, yes: Lanes, no: Lanes | Number) -> Lanes:
    """``yes`` in the lanes where the condition holds, ``no`` in the others."""
    return Lanes(yes.builder, yes.builder.select(condition.value, yes.value, yes.of(no).value))


def order(a: Lanes, b: Lanes | Number) -> tuple[Lanes, Lanes]:
    """The smaller and the larger of two values, lane by lane."""
    b = a.of(b)
    return choose(a < b, a, b), choose(a < b, b, a)


class Plane:
    """A plane as a loop's body sees it: ``plane[n]`` are the 16 values that start ``n`` after the current one."""

    def __init__(self, builder: Any, pointer: Any, here: Any, mask: Any) -> None:
        self.builder, self.pointer, self.here, self.mask = builder, pointer, here, mask
        self.type = _FLOATS if pointer.type.pointee == ir.FloatType() else _INTEGERS

    def _place(self, offset: Any) -> Any:
        if isinstance(offset, int):
            offset = ir.Constant(_INDEX, offset)
        index = self.builder.add(self.here, offset)
        return self.builder.bitcast(self.builder.gep(self.pointer, [index]), self.type.as_pointer())

    def _masked(self, what: str, result: Any, arguments: Sequence[Any]) -> Any:
        suffix = f"v{COUNT}{'f32' if self.type == _FLOATS else 'i32'}.p0"
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = _declared(self.builder.module, signature, f"llvm.masked.{what}.{suffix}")
        return self.builder.call(function, arguments)

    def __getitem__(self, offset: Any) -> Lanes:
        place = self._place(offset)
        if self.mask is None:
            return Lanes(self.builder, self.builder.load(place, align=4))
        zeros, align = ir.Constant(self.type, None), ir.Constant(ir.IntType(32), 4)
        return Lanes(self.builder, self._masked("load", self.type, [place, align, self.mask, zeros]))

    def __setitem__(self, offset: Any, lanes: Lanes) -> None:
        place = self._place(offset)
        if self.mask is None:
            self.builder.store(lanes.value, place, align=4)
        else:
            align = ir.Constant(ir.IntType(32), 4)
            self._masked("store", ir.VoidType(), [lanes.value, place, align, self.mask])


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, single, ir.Constant(_INTEGERS, [0] * COUNT))


def _remainder(builder: Any, rest: Any) -> Any:
    """The mask of a last, incomplete vector of ``rest`` values."""
    numbers = ir.Constant(_INTEGERS, list(range(COUNT)))
    return builder.icmp_unsigned("<", numbers, _splat(builder, builder.trunc(rest, ir.IntType(32)), _INTEGERS))


def stretch(body: Callable[..., None]) -> Callable[..., None]:
    """Make a loop over contiguous values of some planes: ``loop(planes, start, count, steps, reals)``.

    In compiled code ``planes`` is a tuple of flat float32 or int32 arrays, ``steps`` a tuple of integers and
    ``reals`` one of float32. ``body(planes, steps, reals)`` sees a ``Plane`` for each array, the steps as
    offsets for indexing (and their negatives as second half) and each real in all lanes. The planes must be
    the same or not overlap; a body reads all it needs before it writes.
    """

    def loop(typing: Any, planes: Any, start: Any, count: Any, steps: Any, reals: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = [
                context.make_array(kind)(context, builder, builder.extract_value(args[0], k)).data
                for k, kind in enumerate(signature.args[0])
            ]
            offsets = [builder.extract_value(args[3], k) for k in range(len(signature.args[3]))]
            offsets += [builder.neg(offset) for offset in offsets]
            values = [builder.extract_value(args[4], k) for k in range(len(signature.args[4]))]
            spread = [Lanes(builder, _splat(builder, value, _FLOATS)) for value in values]

            def emit(here: Any, mask: Any) -> None:
                body([Plane(builder, array, here, mask) for array in arrays], offsets, spread)

            rest = builder.and_(args[2], ir.Constant(_INDEX, COUNT - 1))
            end = builder.add(args[1], builder.sub(args[2], rest))
            with cgutils.for_range_slice(builder, args[1], end, ir.Constant(_INDEX, COUNT), intp=_INDEX) as (
                here,
                _,
            ):
                emit(here, None)
            with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(_INDEX, 0))):
                emit(end, _remainder(builder, rest))
            return context.get_dummy_value()

        return types.void(planes, types.intp, types.intp, steps, reals), generate

    loop.__name__ = body.__name__
    made: Callable[..., None] = intrinsic(loop)
    return made


def _total(typing: Any, plane: Any, start: Any, count: Any) -> Any:
    """Sum of a stretch of a float32 plane: in 64 lanes first, these one after the other at the end."""
    wide = 4 * COUNT
    kind = ir.VectorType(ir.FloatType(), wide)
    numbers = ir.VectorType(ir.IntType(32), wide)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        zeros = ir.Constant(kind, [0.0] * wide)
        sums = builder.alloca(kind)
        builder.store(zeros, sums)
        rest = builder.and_(args[2], ir.Constant(_INDEX, wide - 1))
        end = builder.add(args[1], builder.sub(args[2], rest))
        with cgutils.for_range_slice(builder, args[1], end, ir.Constant(_INDEX, wide), intp=_INDEX) as (
            here,
            _,
        ):
            place = builder.bitcast(builder.gep(data, [here]), kind.as_pointer())
            builder.store(builder.fadd(builder.load(sums), builder.load(place, align=4)), sums)
        single = builder.insert_element(
            ir.Constant(numbers, ir.Undefined),
            builder.trunc(rest, ir.IntType(32)),
            ir.Constant(ir.IntType(32), 0),
        )
        spread = builder.shuffle_vector(single, single, ir.Constant(numbers, [0] * wide))
        mask = builder.icmp_unsigned("<", ir.Constant(numbers, list(range(wide))), spread)
        place = builder.bitcast(builder.gep(data, [end]), kind.as_pointer())
        align = ir.Constant(ir.IntType(32), 4)
        kinds = [place.type, align.type, mask.type, kind]
        load = _declared(builder.module, ir.FunctionType(kind, kinds), f"llvm.masked.load.v{wide}f32.p0")
        lanes = builder.fadd(builder.load(sums), builder.call(load, [place, align, mask, zeros]))
        total = ir.Constant(ir.FloatType(), 0.0)
        for lane in range(wide):
            total = builder.fadd(total, builder.extract_element(lanes, ir.Constant(ir.IntType(32), lane)))
        return total

    return types.float32(plane, types.intp, types.intp), generate


def _bicubic(typing: Any, texture: Any, start: Any, stride: Any, across: Any, down: Any) -> Any:
    """Weighted sum of 4 × 4 texels of 4 channels, all channels at once; the first three are returned.

    ``texture`` is flat float32, ``start`` the index of the first texel's first channel, ``stride`` the floats
    between rows, ``across`` and ``down`` four float32 weights each. Rows are summed first, each from its
    first texel on with fused multiply-adds, as OpenCV 5 does.
    """
    quad = ir.VectorType(ir.FloatType(), 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fused = _declared(builder.module, ir.FunctionType(quad, [quad] * 3), "llvm.fma.v4f32")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        weights = [[_quad(builder, quad, builder.extract_value(packed, k)) for k in range(4)] for packed in args[3:]]
        total = ir.Constant(quad, None)
        for row in range(4):
            at = builder.add(args[1], builder.mul(args[2], ir.Constant(_INDEX, row)))
            line = ir.Constant(quad, None)
            for column in range(4):
                place = builder.gep(data, [builder.add(at, ir.Constant(_INDEX, 4 * column))])
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
total: Callable[..., Any] = intrinsic(_total)
