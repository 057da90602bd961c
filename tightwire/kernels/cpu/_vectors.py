"""Steps on whole vectors that loops alone do not compile to: each is written in LLVM's own operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

cgutils: Any = _cgutils
_I32, _FLOAT = ir.IntType(32), ir.FloatType()
# Of magnitudes that are looked at together, and of what is transposed at a time.
LANES, SIDE = 16, 8


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Any) -> Any:
    """Returns where array.flat[index] is, as a pointer to `kind`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _load(builder: Any, address: Any) -> Any:
    value = builder.load(address)
    value.align = 4
    return value


def _repeat(builder: Any, value: Any, lanes: int) -> Any:
    """Returns a vector of one value."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _transpose(
    typing: Any, x: Any, first: Any, stride: Any, scale: Any, tile: Any, target: Any, width: Any
) -> Any:
    """Writes 8 rows of 8 float32, `stride` apart from x.flat[first] on, scaled, as columns of 8 rows of a tile.

    Rows of the tile are `width` apart, from tile.flat[target] on.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, begin, step, factor, out, place, apart = args
        vector = ir.VectorType(_FLOAT, SIDE)
        rows = []
        for row in range(SIDE):
            index = builder.add(begin, builder.mul(step, ir.Constant(step.type, row)))
            rows.append(_load(builder, _address(context, builder, x, source, index, vector)))
        for distance in (1, 2, 4):  # exchange what is off the diagonal, of ever larger squares
            for a in range(SIDE):
                if not a & distance:
                    b = a | distance
                    low = [lane if not lane & distance else SIDE + lane - distance for lane in range(SIDE)]
                    high = [lane + distance if not lane & distance else SIDE + lane for lane in range(SIDE)]
                    masks = (ir.Constant(ir.VectorType(_I32, SIDE), places) for places in (low, high))
                    rows[a], rows[b] = [builder.shuffle_vector(rows[a], rows[b], mask) for mask in masks]
        factors = _repeat(builder, factor, SIDE)
        for row in range(SIDE):
            index = builder.add(place, builder.mul(apart, ir.Constant(apart.type, row)))
            address = _address(context, builder, tile, out, index, vector)
            builder.store(builder.fmul(rows[row], factors), address).align = 4
        return context.get_dummy_value()

    return types.none(x, types.intp, types.intp, types.float32, tile, types.intp, types.intp), generate


transpose: Any = intrinsic(_transpose)


def largest_of_columns(kept: int) -> Any:
    """Returns a step that finds the `kept` largest magnitudes of each of 16 columns of a tile, by descending magnitude.

    The step's arguments: the tile, float32; `order`, int64, the tile's row of each element; the first column; and
    `places`, (≥ kept, columns) int32, which gets the elements: the first among equals before others.
    """

    def typed(typing: Any, tile: Any, order: Any, column: Any, places: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(_I32, LANES)
            shape = context.make_array(tile)(context, builder, args[0]).shape
            width = builder.extract_value(shape, 1)
            size = builder.extract_value(context.make_array(order)(context, builder, args[1]).shape, 0)
            best = [
                cgutils.alloca_once_value(builder, ir.Constant(vector, [-1] * LANES)) for _ in range(kept)
            ]
            whose = [
                cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * LANES)) for _ in range(kept)
            ]
            mask = ir.Constant(vector, [0x7FFFFFFF] * LANES)
            with cgutils.for_range(builder, size) as loop:
                row = builder.load(_address(context, builder, order, args[1], loop.index, size.type))
                index = builder.add(builder.mul(row, width), args[2])
                found = builder.and_(
                    _load(builder, _address(context, builder, tile, args[0], index, vector)), mask
                )
                number = _repeat(builder, builder.trunc(loop.index, _I32), LANES)
                mine, its = [builder.load(b) for b in best], [builder.load(w) for w in whose]
                larger = [builder.icmp_signed(">", found, m) for m in mine]
                for slot in range(kept):
                    value = builder.select(larger[slot], found, mine[slot])
                    place = builder.select(larger[slot], number, its[slot])
                    if slot:  # whom the slot before has lost moves down
                        value = builder.select(larger[slot - 1], mine[slot - 1], value)
                        place = builder.select(larger[slot - 1], its[slot - 1], place)
                    builder.store(value, best[slot])
                    builder.store(place, whose[slot])
            for slot in range(kept):
                index = builder.add(builder.mul(width, ir.Constant(width.type, slot)), args[2])
                address = _address(context, builder, places, args[3], index, vector)
                builder.store(builder.load(whose[slot]), address).align = 4
            return context.get_dummy_value()

        return types.none(tile, order, types.intp, places), generate

    return intrinsic(typed)


def _signed(builder: Any, values: Any, bits: Any) -> Any:
    """Returns 16 float32, given as their bits, each sign turned if the bit of its lane is set."""
    vector = values.type
    shifts = ir.Constant(vector, [LANES * 2 - 1 - lane for lane in range(LANES)])
    signs = builder.shl(_repeat(builder, bits, LANES), shifts)
    turned = builder.xor(values, builder.and_(signs, ir.Constant(vector, [-(1 << 31)] * LANES)))
    return builder.bitcast(turned, ir.VectorType(_FLOAT, LANES))


def _add_signed(typing: Any, x: Any, first: Any, bits: Any, table: Any, place: Any) -> Any:
    """Adds 16 float32 from x.flat[first] on, each sign turned if its bit is set, to those from table.flat[place] on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, begin, turns, target, there = args
        values = _load(builder, _address(context, builder, x, source, begin, ir.VectorType(_I32, LANES)))
        floats = ir.VectorType(_FLOAT, LANES)
        address = _address(context, builder, table, target, there, floats)
        total = builder.fadd(_load(builder, address), _signed(builder, values, turns))
        builder.store(total, address).align = 4
        return context.get_dummy_value()

    return types.none(x, types.intp, types.uint32, table, types.intp), generate


add_signed: Any = intrinsic(_add_signed)


def median_of_rows(rows: int) -> Any:
    """Returns a step that writes the median of 16 float32 at each of 1, 3 or 5 places of a table, some signs turned.

    The step's arguments: the table, float32; `places`, int64, and `bits`, uint32, of which `rows` from `index` on
    count; the output, float32, and where in it.
    """

    def typed(typing: Any, table: Any, places: Any, bits: Any, index: Any, out: Any, first: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            seen = []
            for row in range(rows):
                at = builder.add(args[3], ir.Constant(args[3].type, row))
                place = builder.load(_address(context, builder, places, args[1], at, args[3].type))
                turns = builder.load(_address(context, builder, bits, args[2], at, _I32))
                vector = ir.VectorType(_I32, LANES)
                values = _load(builder, _address(context, builder, table, args[0], place, vector))
                seen.append(_signed(builder, values, turns))
            floats = ir.VectorType(_FLOAT, LANES)
            address = _address(context, builder, out, args[4], args[5], floats)
            builder.store(_median(builder, seen), address).align = 4
            return context.get_dummy_value()

        return types.none(table, places, bits, types.intp, out, types.intp), generate

    return intrinsic(typed)


def _median(builder: Any, seen: list[Any]) -> Any:
    def chosen(comparison: str) -> Callable[[Any, Any], Any]:
        return lambda a, b: builder.select(builder.fcmp_ordered(comparison, a, b), a, b)

    smaller, larger = chosen("<"), chosen(">")
    if len(seen) == 5:
        a, b, c, d, e = seen
        low = larger(smaller(a, b), smaller(c, d))
        seen = [low, e, smaller(larger(a, b), larger(c, d))]
    if len(seen) == 3:
        a, b, c = seen
        return larger(smaller(a, b), smaller(larger(a, b), c))
    return seen[0]
