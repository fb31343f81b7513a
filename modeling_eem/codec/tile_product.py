"""Sums of products of bytes, tile by tile, as vector instructions: all products of the fast decoder use them.

A tile is R rows by 2 vectors of 16 int32 sums. One step takes 4 unsigned and 4 signed bytes a sum:

    sums[r, c] += sum_i unsigned[.., 4 k + i] * signed[.., 4 k + i]

One side is a vector of 16 columns, read once for all rows; the other is 4 bytes of each row, used for all columns. The
products are at most 255 * 127 and sums are int32, so nothing saturates, whatever the order. Processors with
AVX512-VNNI have one instruction for a step; others multiply even and odd bytes as int16 pairs. The features that numba
compiles for (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES) decide which is compiled.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from .compilation import compiled_by_hand

# ir.IRBuilder and ir.Value; without stubs, a type checker finds that all of the builder's methods return None.
Builder = Any
Value = Any

LANES = 16
# Columns of a tile.
TILE_COLUMNS = 2 * LANES

_I32, _I16 = ir.IntType(32), ir.IntType(16)
_SUMS = ir.VectorType(_I32, LANES)
_PAIRS = ir.VectorType(_I16, 2 * LANES)


def has_features(*features: str) -> bool:
    """Whether numba compiles for a processor that has all of these, as LLVM names them."""
    context: Any = cpu_target.target_context  # numba's own cached property, which no type checker sees through
    return set(features) <= set(context.codegen()._tm_features.split(","))


def has_vnni() -> bool:
    """Whether numba compiles for a processor with AVX512-VNNI."""
    return has_features("+avx512f", "+avx512vnni")


def _constant(element: ir.Type, values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, len(values)), values)


def _multiply_pairs(builder: Builder, a: Value, b: Value) -> Value:
    """`a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]` of int16 as int32: compilers turn this form into one instruction."""
    if has_features("+avx2"):
        half = ir.VectorType(_I16, LANES)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VectorType(_I32, LANES // 2), [half, half]), "llvm.x86.avx2.pmadd.wd"
        )
        sums = []
        for first in (0, LANES):
            lanes = _constant(_I32, list(range(first, first + LANES)))
            sums.append(
                builder.call(
                    function, [builder.shuffle_vector(x, ir.Constant(_PAIRS, ir.Undefined), lanes) for x in (a, b)]
                )
            )
        return builder.shuffle_vector(*sums, _constant(_I32, list(range(LANES))))
    products = []
    for parity in (0, 1):
        lanes = _constant(_I32, list(range(parity, 2 * LANES, 2)))
        wide = [
            builder.sext(builder.shuffle_vector(x, ir.Constant(_PAIRS, ir.Undefined), lanes), _SUMS) for x in (a, b)
        ]
        products.append(builder.mul(*wide))
    return builder.add(*products)


def _halves(builder: Builder, words: Value, is_signed: bool) -> tuple[Value, Value]:
    """Even and odd bytes of 32-bit words, as int16."""
    pairs = builder.bitcast(words, _PAIRS)
    eight = _constant(_I16, [8] * 2 * LANES)
    shift = builder.ashr if is_signed else builder.lshr
    return shift(builder.shl(pairs, eight), eight), shift(pairs, eight)


def _step(builder: Builder, sums: Value, unsigned: Value, signed: Value) -> Value:
    """One step on 16 sums: 4 products each."""
    if has_vnni():
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_SUMS, [_SUMS, _SUMS, _SUMS]),
            "llvm.x86.avx512.vpdpbusd.512",
        )
        return builder.call(function, [sums, unsigned, signed])
    for a, b in zip(_halves(builder, unsigned, False), _halves(builder, signed, True)):
        sums = builder.add(sums, _multiply_pairs(builder, a, b))
    return sums


def _make_tile(num_rows: int, is_vector_unsigned: bool) -> Callable[..., Any]:
    """`tile(out, init, vectors, words, steps)`; each except `steps` is an int32 array, a place and a stride.

    Row r of `out` (stride: between rows) becomes row r of `init` plus the products. Step k reads 32 columns at
    `vectors[place + k stride]`, and of row r the word at `words[place + r stride + k]`.
    """

    def implement(context: Any, builder: Builder, signature: Any, arguments: list[Value]) -> Value:
        def pointer(index: int) -> tuple[Value, Value]:
            array = context.make_array(signature.args[index])(context, builder, arguments[index])
            return builder.gep(array.data, [arguments[index + 1]]), arguments[index + 2]

        (out, out_stride), (init, init_stride), (vectors, step), (words, word_stride) = map(pointer, (0, 3, 6, 9))
        steps = arguments[12]
        index_type = steps.type

        def constant(value: int) -> ir.Constant:
            return ir.Constant(index_type, value)

        def vector_at(base: Value, offset: Value, column: int) -> Value:
            place = builder.gep(base, [builder.add(offset, constant(column * LANES))])
            return builder.bitcast(place, ir.PointerType(_SUMS))

        sums = [[cgutils.alloca_once(builder, _SUMS) for _ in range(2)] for _ in range(num_rows)]
        for row in range(num_rows):
            offset = builder.mul(init_stride, constant(row))
            for column in range(2):
                builder.store(builder.load(vector_at(init, offset, column), align=4), sums[row][column])
        with cgutils.for_range(builder, steps) as loop:
            offset = builder.mul(loop.index, step)
            loaded = [builder.load(vector_at(vectors, offset, column), align=4) for column in range(2)]
            for row in range(num_rows):
                place = builder.add(builder.mul(word_stride, constant(row)), loop.index)
                word = builder.load(builder.gep(words, [place]))
                single = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), word, ir.Constant(_I32, 0))
                word = builder.shuffle_vector(single, ir.Constant(_SUMS, ir.Undefined), _constant(_I32, [0] * LANES))
                for column in range(2):
                    pair = (loaded[column], word) if is_vector_unsigned else (word, loaded[column])
                    builder.store(_step(builder, builder.load(sums[row][column]), *pair), sums[row][column])
        for row in range(num_rows):
            offset = builder.mul(out_stride, constant(row))
            for column in range(2):
                builder.store(builder.load(sums[row][column]), vector_at(out, offset, column), align=4)
        return context.get_dummy_value()

    # numba reads this signature: an array, a place in it and a stride, four times, then the number of steps.
    @compiled_by_hand
    def tile(  # noqa: ANN202
        typing_context: Any,
        out: Any, out_place: Any, out_stride: Any,
        init: Any, init_place: Any, init_stride: Any,
        vectors: Any, vectors_place: Any, vectors_stride: Any,
        words: Any, words_place: Any, words_stride: Any,
        steps: Any,
    ):  # fmt: skip
        array, place = types.Array(types.int32, 1, "C"), types.intp
        return types.void(*([array, place, place] * 4), place), implement

    return tile


# For a Linear: 32 outputs' signed weights, and each row's own unsigned inputs.
linear_tile_8, linear_tile_4, linear_tile_1 = (_make_tile(rows, is_vector_unsigned=False) for rows in (8, 4, 1))
# For a mixing: 32 columns' unsigned inputs, and each position's own signed weights.
mixing_tile_8, mixing_tile_1 = (_make_tile(rows, is_vector_unsigned=True) for rows in (8, 1))
