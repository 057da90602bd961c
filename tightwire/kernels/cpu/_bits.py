"""What the loops are made of: float bits, half precision, randomness that is a function of position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

# Python's errors cost a branch per division; the loops handle zero and overflow themselves.
LOOP: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}

F32 = np.float32
U32 = np.uint32
I32 = np.int32

MAGNITUDE = U32(0x7FFFFFFF)
INFINITY = U32(0x7F800000)
LARGEST = F32(3.4028235e38)
# A step must survive rounding and multiplication by its levels without overflow ...
CEILING = F32(3.40282e38)
# ... and have a finite inverse: blocks whose norm is below this are sent as zeros and stay in the leftover.
FLOOR = F32(2.0**-100)
# Adding and subtracting 1.5·2**23 rounds a float32 below 2**22 to the nearest integer, ties to even.
ROUNDER = F32(12582912.0)


def _converted(source: Any, target: Any, convert: Callable[[Any, Any], Any]) -> Any:
    """Returns a function of compiled code that turns a `source` into a `target` by LLVM operations."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return convert(builder, args[0])

    def typed(typing: Any, value: Any) -> Any:
        return target(source), generate

    return intrinsic(typed)


_F32, _I32, _HALF, _I16 = ir.FloatType(), ir.IntType(32), ir.HalfType(), ir.IntType(16)
bits_of = _converted(types.float32, types.uint32, lambda builder, x: builder.bitcast(x, _I32))
float_of = _converted(types.uint32, types.float32, lambda builder, x: builder.bitcast(x, _F32))
# One instruction each where the processor has it.
to_half = _converted(
    types.float32, types.uint16, lambda builder, x: builder.bitcast(builder.fptrunc(x, _HALF), _I16)
)
from_half = _converted(
    types.uint16, types.float32, lambda builder, x: builder.fpext(builder.bitcast(x, _HALF), _F32)
)


def _reaching(typing: Any, a: Any, first: Any, mask: Any, low: Any) -> Any:
    """Returns which of the 64 elements from a[first] on reach `low` without their sign, as the bits of a uint64.

    A comparison of whole vectors whose outcome is read as an integer, which loops alone do not compile to.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lane = context.get_value_type(a.dtype)
        vector, places = ir.VectorType(lane, 64), ir.VectorType(ir.IntType(32), 64)
        nothing = ir.Constant(vector, ir.Undefined)

        def repeat(value: Any) -> Any:
            one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, nothing, ir.Constant(places, [0] * 64))

        array = context.make_array(a)(context, builder, args[0])
        address = builder.gep(array.data, [args[1]])
        elements = builder.load(builder.bitcast(address, vector.as_pointer()))
        elements.align = 1
        magnitudes = builder.and_(elements, repeat(args[2]))
        return builder.bitcast(builder.icmp_signed(">=", magnitudes, repeat(args[3])), ir.IntType(64))

    return types.uint64(a, types.intp, a.dtype, a.dtype), generate


reaching: Any = intrinsic(_reaching)


def _lowest_bit(typing: Any, bits: Any) -> Any:
    """Returns the place of the lowest bit that is set in a uint64 that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


lowest_bit: Any = intrinsic(_lowest_bit)


def _load(typing: Any, memory: Any, place: Any) -> Any:
    """Returns the uint64 whose bytes begin at memory[place], at any address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(memory)(context, builder, args[0])
        address = builder.gep(array.data, [args[1]])
        word = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(memory, types.intp), generate


def _store(typing: Any, memory: Any, place: Any, word: Any) -> Any:
    """Writes the bytes of an unsigned integer from memory[place] on, at any address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(memory)(context, builder, args[0])
        address = builder.gep(array.data, [args[1]])
        pointer = builder.bitcast(address, context.get_value_type(word).as_pointer())
        builder.store(args[2], pointer).align = 1
        return context.get_dummy_value()

    return types.none(memory, types.intp, word), generate


load_word: Any = intrinsic(_load)
store_word: Any = intrinsic(_store)


@njit(inline="always")
def is_finite_bits(bits: Any) -> Any:
    """Whether these are the bits of a finite float32."""
    return (bits & MAGNITUDE) < INFINITY


@njit(inline="always")
def random_bits(index: Any, key: Any, second_key: Any) -> Any:
    """Returns 32 random bits as a function of an element's index and its message's keys.

    The mixing constants are lowbias32 (Wellons, "Prospecting for Hash Functions", 2018), keyed twice so that
    the streams of two seeds are not permutations of one another.
    """
    h = U32(index ^ key)
    h = U32(h ^ U32(h >> U32(16)))
    h = U32(h * U32(0x7FEB352D))
    h = U32(h ^ second_key)
    h = U32(h ^ U32(h >> U32(15)))
    h = U32(h * U32(0x846CA68B))
    return U32(h ^ U32(h >> U32(16)))


@njit(inline="always")
def random_unit(index: Any, key: Any, second_key: Any) -> Any:
    """Returns a float32 in [0, 1), a multiple of 2**-24."""
    return F32(I32(random_bits(index, key, second_key) >> U32(8))) * F32(2.0**-24)
