"""Loops over planes in vectors of float32.

A loop's body is plain Python over ``Lanes``; running it once, while Numba compiles, emits the vector
instructions. Compared with leaving the loops to LLVM's vectoriser this needs no overlap checks between the
planes (which for ten of them cost more than short rows and most of the compile time), does not depend on a
cost model, and gives the remainder of a row the very same instructions under a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kdcache.motion.simd import COUNT, FLOATS, INDEX, INTEGERS, Lanes, declared


class Plane:
    """A plane as a loop's body sees it: ``plane[n]`` are the values that start ``n`` after the current one."""

    def __init__(self, builder: Any, pointer: Any, here: Any, mask: Any) -> None:
        self.builder, self.pointer, self.here, self.mask = builder, pointer, here, mask
        self.type = FLOATS if pointer.type.pointee == ir.FloatType() else INTEGERS

    def _place(self, offset: Any) -> Any:
        if isinstance(offset, int):
            offset = ir.Constant(INDEX, offset)
        index = self.builder.add(self.here, offset)
        return self.builder.bitcast(self.builder.gep(self.pointer, [index]), self.type.as_pointer())

    def _masked(self, what: str, result: Any, arguments: Sequence[Any]) -> Any:
        suffix = f"v{COUNT}{'f32' if self.type == FLOATS else 'i32'}.p0"
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        function = declared(self.builder.module, signature, f"llvm.masked.{what}.{suffix}")
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
    return builder.shuffle_vector(single, single, ir.Constant(INTEGERS, [0] * COUNT))


def _remainder(builder: Any, rest: Any) -> Any:
    """The mask of a last, incomplete vector of ``rest`` values."""
    numbers = ir.Constant(INTEGERS, list(range(COUNT)))
    return builder.icmp_unsigned("<", numbers, _splat(builder, builder.trunc(rest, ir.IntType(32)), INTEGERS))


_slot: Any = cgutils.alloca_once


class _LoopBody:
    """The stages of a loop's body while code for them is emitted, and what each hands on to the next."""

    def __init__(self, stages: Sequence[Callable[..., Any]], context: Any, builder: Any, kinds: Any, args: Any) -> None:
        planes, _, _, steps, reals = args
        self.stages, self.builder = stages, builder
        self.arrays = [
            context.make_array(kind)(context, builder, builder.extract_value(planes, k)).data
            for k, kind in enumerate(kinds[0])
        ]
        self.steps = [builder.extract_value(steps, k) for k in range(len(kinds[3]))]
        self.steps += [builder.neg(step) for step in self.steps]
        values = [builder.extract_value(reals, k) for k in range(len(kinds[4]))]
        self.reals = [Lanes(builder, _splat(builder, value, FLOATS)) for value in values]
        self.slots: dict[int, list[Any]] = {}

    def emit(self, number: int, here: Any, mask: Any = None) -> None:
        """One stage for the vector at ``here``."""
        views = [Plane(self.builder, array, here, mask) for array in self.arrays]
        taken = [Lanes(self.builder, self.builder.load(slot)) for slot in self.slots.get(number - 1, [])]
        given = self.stages[number](views, self.steps, self.reals, *taken) or ()
        if number not in self.slots:
            self.slots[number] = [_slot(self.builder, FLOATS) for _ in given]
        for slot, lanes in zip(self.slots[number], given, strict=True):
            self.builder.store(lanes.value, slot)

    def turn(self, here: Any, numbers: Sequence[int]) -> None:
        """Stages, the last one first, each for the vector that lies its number of vectors before ``here``."""
        for number in reversed(numbers):
            self.emit(number, self.at(here, -number))

    def at(self, here: Any, vectors: int) -> Any:
        return self.builder.add(here, ir.Constant(INDEX, vectors * COUNT))


def pipelined(*stages: Callable[..., Any]) -> Callable[..., None]:
    """Make a loop over contiguous values of some planes: ``loop(planes, start, count, steps, reals)``.

    In compiled code ``planes`` is a tuple of flat float32 or int32 arrays, ``steps`` a tuple of integers and
    ``reals`` one of float32. A stage, ``stage(planes, steps, reals, *taken)``, sees a ``Plane`` for each array,
    the steps as offsets for indexing (and their negatives as second half), each real in all lanes, and the tuple
    of lanes that the stage before it gave. In one turn of the loop the stages are for different vectors, each one
    vector behind the stage before it: a quotient or root at the end of a stage is ready when the next one needs
    it, a turn later, where a processor could not look as far ahead by itself. The planes must be the same or not
    overlap. What a stage writes, no stage may read or write at other places ahead of it.
    """
    last = len(stages) - 1

    def loop(typing: Any, planes: Any, start: Any, count: Any, steps: Any, reals: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            body = _LoopBody(stages, context, builder, signature.args, args)
            step = ir.Constant(INDEX, COUNT)
            start, count = args[1:3]
            rest = builder.and_(count, ir.Constant(INDEX, COUNT - 1))
            end = builder.add(start, builder.sub(count, rest))

            def whole(here: Any, mask: Any = None) -> None:
                for number in range(last + 1):
                    body.emit(number, here, mask)

            fills = builder.icmp_signed(">=", count, ir.Constant(INDEX, last * COUNT))
            with builder.if_else(fills) as (then, otherwise):
                with then:
                    for turn in range(last):
                        body.turn(body.at(start, turn), range(turn + 1))
                    with cgutils.for_range_slice(builder, body.at(start, last), end, step, intp=INDEX) as (here, _):
                        body.turn(here, range(last + 1))
                    for turn in range(last):
                        body.turn(body.at(end, turn), range(turn + 1, last + 1))
                with otherwise, cgutils.for_range_slice(builder, start, end, step, intp=INDEX) as (here, _):
                    whole(here)
            with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(INDEX, 0))):
                whole(end, _remainder(builder, rest))
            return context.get_dummy_value()

        return types.void(planes, types.intp, types.intp, steps, reals), generate

    loop.__name__ = stages[-1].__name__
    made: Callable[..., None] = intrinsic(loop)
    return made


def stretch(body: Callable[..., None]) -> Callable[..., None]:
    """A loop as ``pipelined`` makes it, of one stage; it reads all it needs before it writes."""
    return pipelined(body)


def at_once(*stages: Callable[..., Any]) -> Callable[..., None]:
    """A loop as ``pipelined`` makes it, but with all stages for the same vector."""

    def body(planes: Any, steps: Any, reals: Any) -> None:
        taken: Any = ()
        for stage in stages:
            taken = stage(planes, steps, reals, *taken)

    return stretch(body)


def _total(typing: Any, plane: Any, start: Any, count: Any) -> Any:
    """Sum of a stretch of a float32 plane: in 64 lanes first, these one after the other at the end."""
    wide = 64
    kind = ir.VectorType(ir.FloatType(), wide)
    numbers = ir.VectorType(ir.IntType(32), wide)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        zeros = ir.Constant(kind, [0.0] * wide)
        sums = builder.alloca(kind)
        builder.store(zeros, sums)
        rest = builder.and_(args[2], ir.Constant(INDEX, wide - 1))
        end = builder.add(args[1], builder.sub(args[2], rest))
        with cgutils.for_range_slice(builder, args[1], end, ir.Constant(INDEX, wide), intp=INDEX) as (
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
        load = declared(builder.module, ir.FunctionType(kind, kinds), f"llvm.masked.load.v{wide}f32.p0")
        lanes = builder.fadd(builder.load(sums), builder.call(load, [place, align, mask, zeros]))
        total = ir.Constant(ir.FloatType(), 0.0)
        for lane in range(wide):
            total = builder.fadd(total, builder.extract_element(lanes, ir.Constant(ir.IntType(32), lane)))
        return total

    return types.float32(plane, types.intp, types.intp), generate


total: Callable[..., Any] = intrinsic(_total)
