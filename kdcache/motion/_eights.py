"""Vector instructions on pixels of eight float32 each: making them, bilinear samples, running sums, sums of boxes.

Left to the compiler such loops are made one value after the other, which takes two to four times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

COUNT = 8  # pixels of a call, and values of a pixel
USED = 5  # of these values
_WORD = ir.IntType(32)
_INDEX = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), COUNT)
_MASK = ir.VectorType(_WORD, COUNT)
_variable: Any = cgutils.alloca_once_value


def _shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(_MASK, places))


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The eight columns of eight rows of eight values; within halves of a vector as far as that goes."""
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    even, odd = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    front, back = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    pairs = [(rows[k], rows[k + 1]) for k in range(0, COUNT, 2)]
    lows, highs = ([_shuffled(builder, a, b, places) for a, b in pairs] for places in (low, high))
    quads = [
        (_shuffled(builder, of[0], of[1], places), _shuffled(builder, of[2], of[3], places))
        for of in (lows, highs)
        for places in (even, odd)
    ]
    return [_shuffled(builder, a, b, places) for places in (front, back) for a, b in quads]


def _vector(builder: Any, data: Any, start: Any) -> Any:
    """Where the eight float32 from ``start`` on lie."""
    return builder.bitcast(builder.gep(data, [start]), _FLOATS.as_pointer())


def _beside(typing: Any, planes: Any, first: Any, pixels: Any, start: Any) -> Any:
    """``beside(planes, first, pixels, start)``: ``planes float32 [5, n]`` at ``first`` … ``first`` + 7 as pixels.

    They go to flat ``pixels`` from the one numbered ``start`` on, their last three values as 0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, out = (context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 2))
        length = builder.extract_value(array.shape, 1)
        rows = []
        for number in range(USED):
            place = builder.add(builder.mul(length, ir.Constant(_INDEX, number)), arguments[1])
            rows.append(builder.load(_vector(builder, array.data, place), align=4))
        rows += [ir.Constant(_FLOATS, None)] * (COUNT - USED)
        at = builder.mul(arguments[3], ir.Constant(_INDEX, COUNT))
        for k, pixel in enumerate(_turned(builder, rows)):
            place = builder.add(at, ir.Constant(_INDEX, k * COUNT))
            builder.store(pixel, _vector(builder, out.data, place), align=4)
        return context.get_dummy_value()

    return types.void(planes, types.intp, pixels, types.intp), generate


def _blend(typing: Any, pixels: Any, stride: Any, at: Any, share: Any, first: Any, out: Any) -> Any:
    """``blend(pixels, stride, at, share, first, out)`` for the eight pixels from ``first`` on.

    ``pixels`` is flat float32, eight values each, ``stride`` pixels a row; ``at int32 [n]`` the upper left one of
    each four, ``share float32 [4, n]`` the weights of these (right, below, diagonal after it), in whose order products
    are added; ``out float32 [5, n]`` gets the first five values.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [context.make_array(signature.args[k])(context, builder, arguments[k]) for k in (0, 2, 3, 5)]
        data, places, weights, sums = (array.data for array in arrays)
        first = arguments[4]
        length = builder.extract_value(arrays[1].shape, 0)

        def row(pointer: Any, number: int) -> Any:
            return _vector(builder, pointer, builder.add(builder.mul(length, ir.Constant(_INDEX, number)), first))

        share_of = [builder.load(row(weights, r), align=4) for r in range(4)]
        right, below = ir.Constant(_INDEX, COUNT), builder.mul(arguments[1], ir.Constant(_INDEX, COUNT))
        found = []
        for k in range(COUNT):
            place = builder.gep(places, [builder.add(first, ir.Constant(_INDEX, k))])
            start = builder.mul(builder.zext(builder.load(place), _INDEX), ir.Constant(_INDEX, COUNT))
            total = None
            for r, step in enumerate((ir.Constant(_INDEX, 0), right, below, builder.add(below, right))):
                pixel = builder.load(_vector(builder, data, builder.add(start, step)), align=4)
                weight = builder.shuffle_vector(share_of[r], share_of[r], ir.Constant(_MASK, [k] * COUNT))
                product = builder.fmul(weight, pixel)
                total = product if total is None else builder.fadd(total, product)
            found.append(total)
        for c, column in enumerate(_turned(builder, found)[:USED]):
            builder.store(column, row(sums, c), align=4)
        return context.get_dummy_value()

    return types.void(pixels, types.intp, at, share, types.intp, out), generate


def _accumulate(typing: Any, bins: Any, one: Any, other: Any, above: Any, out: Any) -> Any:
    """``accumulate(bins, one, other, above, out)``: a row of an integral histogram of eight bins.

    Pixel x adds ``one[x]`` to bin ``bins[x]`` (0 … 7) and ``other[x]`` to the next. ``above`` and ``out``, flat with
    eight values a pixel, are the rows before and after; what is left of pixel x lies at place x.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [context.make_array(k)(context, builder, a) for k, a in zip(signature.args, arguments, strict=True)]
        bins, one, other, above, out = (array.data for array in arrays)
        numbers = ir.Constant(_MASK, list(range(COUNT)))
        zeros, eight, next_one = ir.Constant(_FLOATS, None), ir.Constant(_INDEX, COUNT), ir.Constant(_WORD, 1)
        total = _variable(builder, zeros)

        def everywhere(value: Any, kind: Any) -> Any:
            single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WORD, 0))
            return _shuffled(builder, single, single, [0] * COUNT)

        def given(bin_number: Any, pointer: Any, x: Any, otherwise: Any) -> Any:
            here = builder.icmp_signed("==", numbers, everywhere(bin_number, _MASK))
            return builder.select(here, everywhere(builder.load(builder.gep(pointer, [x])), _FLOATS), otherwise)

        with cgutils.for_range(builder, builder.extract_value(arrays[0].shape, 0), intp=_INDEX) as loop:
            x = loop.index
            first = builder.load(builder.gep(bins, [x]))
            after = builder.and_(builder.add(first, next_one), ir.Constant(_WORD, COUNT - 1))
            added = given(first, one, x, given(after, other, x, zeros))
            builder.store(builder.fadd(builder.load(total), added), total)
            place = builder.mul(builder.add(x, ir.Constant(_INDEX, 1)), eight)
            sums = builder.fadd(builder.load(_vector(builder, above, place), align=4), builder.load(total))
            builder.store(sums, _vector(builder, out, place), align=4)
        return context.get_dummy_value()

    return types.void(bins, one, other, above, out), generate


def _box(typing: Any, over: Any, under: Any, left: Any, right: Any, out: Any, start: Any) -> Any:
    """``box(over, under, left, right, out, start)``: the histogram between two rows of an integral histogram.

    Of pixels ``left`` … ``right`` − 1, none of it below 0, into ``out[start : start + 8]``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        over, under, out = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in (0, 1, 4)
        )

        def at(pointer: Any, x: Any) -> Any:
            return builder.load(_vector(builder, pointer, builder.mul(x, ir.Constant(_INDEX, COUNT))), align=4)

        left, right = arguments[2:4]
        value = builder.fsub(builder.fadd(at(under, right), at(over, left)), at(under, left))
        value, zeros = builder.fsub(value, at(over, right)), ir.Constant(_FLOATS, None)
        value = builder.select(builder.fcmp_ordered(">", value, zeros), value, zeros)
        builder.store(value, _vector(builder, out, arguments[5]), align=4)
        return context.get_dummy_value()

    return types.void(over, under, types.intp, types.intp, out, types.intp), generate


accumulate: Callable[..., None] = intrinsic(_accumulate)
beside: Callable[..., None] = intrinsic(_beside)
blend: Callable[..., None] = intrinsic(_blend)
box: Callable[..., None] = intrinsic(_box)
