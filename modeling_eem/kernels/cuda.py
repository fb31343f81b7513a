"""Token mixing on a GPU by Triton: values above the diagonal of W are neither read nor multiplied.

It needs half of the products of the dense way, in its own tiles instead of cuBLAS's. No GPU has timed it yet, so
importing `modeling_eem` does not use it: `with kernels.triton():` does, and `make bench-gpu` compares. Its naive twin
is `dense_token_mixing`; the tests run it in Triton's interpreter on a CPU (`TRITON_INTERPRET=1`).

Shapes: H heads, T tokens, F = B * E columns. Tiles are summed in float32 and rounded once. `torch.compile` uses the
dense way.
"""
# ruff: noqa: ANN001, ANN202, SIM108 (Triton types the arguments of its kernels, and compiles no conditional expression)

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]: comes with PyTorch for GPUs, and not with that for CPUs
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

# Rows of W, columns of x, and tokens summed at a time: 96 KiB of shared memory in three stages.
TILE_ROWS, TILE_COLUMNS, TILE_BYTES = 128, 128, 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's interpreter runs on a CPU's tensors.
IS_INTERPRETED = triton.knobs.runtime.interpret


def triangle_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor | None:
    """`dense_token_mixing` without taps, for a causal model on a GPU; anything else is declined.

    Under autocast it runs in autocast's dtype, as products do. It has no second derivatives.
    """
    if not _is_taken(weight_HTTK, x_HTBE, is_causal):
        return None
    device = x_HTBE.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_HTBE.dtype
    if dtype not in DTYPES:
        return None
    y_HTF = _TriangleMixing.apply(weight_HTTK[..., 0].to(dtype), bias_HT.to(dtype), x_HTBE.flatten(2).to(dtype))
    return y_HTF.view_as(x_HTBE)


def _is_taken(weight_HTTK: Tensor, x_HTBE: Tensor, is_causal: bool) -> bool:
    plain = (Tensor, torch.nn.Parameter)  # shards (DTensor) and quantized weights are neither
    return (
        is_causal
        and (x_HTBE.is_cuda or (IS_INTERPRETED and x_HTBE.is_cpu))
        and weight_HTTK.device == x_HTBE.device
        and weight_HTTK.shape[-1] == 1
        and x_HTBE.numel() > 0
        and x_HTBE.dtype in DTYPES
        and type(weight_HTTK) in plain
        and type(x_HTBE) in plain
    )


class _TriangleMixing(torch.autograd.Function):
    """`y = tril(W) x + bias`, `W [H, T, T]`, `bias [H, T]`, `x` and `y [H, T, F]`."""

    @staticmethod
    def forward(ctx: Any, weight_HTT: Tensor, bias_HT: Tensor, x_HTF: Tensor) -> Tensor:
        needs_weight, _, needs_x = ctx.needs_input_grad
        ctx.save_for_backward(weight_HTT if needs_x else None, x_HTF if needs_weight else None)
        return triangle_product(weight_HTT, x_HTF, bias_HT, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_HTF: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_weight, needs_bias, needs_x = ctx.needs_input_grad
        weight_HTT, x_HTF = ctx.saved_tensors
        return (
            triangle_slopes(grad_HTF, x_HTF) if needs_weight else None,
            grad_HTF.sum(-1) if needs_bias else None,
            triangle_product(weight_HTT, grad_HTF, None, True) if needs_x else None,
        )


# Separate operators, because vmap must be able to run them one by one (`GradientInputEntropy`).
@torch.library.custom_op("modeling_eem::triangle_product", mutates_args=())
def triangle_product(weight_HTT: Tensor, x_HTF: Tensor, bias_HT: Tensor | None, is_transposed: bool) -> Tensor:
    """`tril(W) x + bias`, or with `is_transposed` `tril(W)^T x`, as `[H, T, F]`."""
    num_heads, length, num_columns = x_HTF.shape
    y_HTF = torch.empty((num_heads, length, num_columns), dtype=x_HTF.dtype, device=x_HTF.device)
    head, row, column = weight_HTT.stride()
    grid = (triton.cdiv(length, TILE_ROWS), triton.cdiv(num_columns, TILE_COLUMNS), num_heads)
    _product_kernel[grid](  # pyright: ignore[reportIndexIssue]: without Triton it is taken for a plain function
        weight_HTT,
        x_HTF,
        y_HTF if bias_HT is None else bias_HT.contiguous(),
        y_HTF,
        length,
        num_columns,
        head,
        *((column, row) if is_transposed else (row, column)),
        *x_HTF.stride(),
        IS_TRANSPOSED=is_transposed,
        HAS_BIAS=bias_HT is not None,
        PRECISION=_precision(),
        ROWS=TILE_ROWS,
        COLUMNS=TILE_COLUMNS,
        SUMMED=TILE_BYTES // x_HTF.element_size(),
        num_warps=8,
    )
    return y_HTF


@torch.library.custom_op("modeling_eem::triangle_slopes", mutates_args=())
def triangle_slopes(grad_HTF: Tensor, x_HTF: Tensor) -> Tensor:
    """The gradient of W: `tril(g x^T)`, `[H, T, T]`."""
    num_heads, length, num_columns = x_HTF.shape
    slopes_HTT = torch.empty((num_heads, length, length), dtype=x_HTF.dtype, device=x_HTF.device)
    tiles = triton.cdiv(length, TILE_ROWS)
    _slopes_kernel[(tiles, tiles, num_heads)](  # pyright: ignore[reportIndexIssue]
        grad_HTF,
        x_HTF,
        slopes_HTT,
        length,
        num_columns,
        *grad_HTF.stride(),
        *x_HTF.stride(),
        PRECISION=_precision(),
        ROWS=TILE_ROWS,
        SUMMED=TILE_BYTES // x_HTF.element_size(),
        num_warps=8,
    )
    return slopes_HTT


@triangle_product.register_fake
def _(weight_HTT: Tensor, x_HTF: Tensor, bias_HT: Tensor | None, is_transposed: bool) -> Tensor:
    return x_HTF.new_empty(x_HTF.shape)


@triangle_slopes.register_fake
def _(grad_HTF: Tensor, x_HTF: Tensor) -> Tensor:
    return x_HTF.new_empty((*x_HTF.shape[:2], x_HTF.shape[1]))


def _precision() -> str:
    """The precision of float32 products: PyTorch's own on this GPU."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def _product_kernel(
    weight,
    x,
    bias,
    y,
    length,
    num_columns,
    weight_head,
    weight_row,
    weight_column,
    x_head,
    x_token,
    x_feature,
    IS_TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """A tile of `A x`. If A is W, row i sums tokens up to i; if A is W^T, row i sums tokens from i on."""
    tile = tl.program_id(0)
    head = tl.program_id(2).to(tl.int64)
    rows = tile * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has_row = rows[:, None] < length
    has_column = columns[None, :] < num_columns
    if IS_TRANSPOSED:
        first = tile * ROWS
        last = length
    else:
        first = 0
        last = tl.minimum(tile * ROWS + ROWS, length)
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(first, last, SUMMED):
        tokens = start + tl.arange(0, SUMMED)
        if IS_TRANSPOSED:
            is_seen = tokens[None, :] >= rows[:, None]
        else:
            is_seen = tokens[None, :] <= rows[:, None]
        a = tl.load(
            weight + head * weight_head + rows[:, None] * weight_row + tokens[None, :] * weight_column,
            mask=is_seen & has_row & (tokens[None, :] < length),
            other=0.0,
        )
        b = tl.load(
            x + head * x_head + tokens[:, None].to(tl.int64) * x_token + columns[None, :] * x_feature,
            mask=(tokens[:, None] < length) & has_column,
            other=0.0,
        )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias + head * length + rows, mask=rows < length, other=0.0).to(tl.float32)[:, None]
    places = y + (head * length + rows[:, None]) * num_columns + columns[None, :]
    tl.store(places, sums.to(y.dtype.element_ty), mask=has_row & has_column)


@triton.jit
def _slopes_kernel(
    grad,
    x,
    slopes,
    length,
    num_columns,
    grad_head,
    grad_token,
    grad_feature,
    x_head,
    x_token,
    x_feature,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """A tile of `g x^T`; above the diagonal only zeros are written."""
    tile = tl.program_id(0)
    tile_seen = tl.program_id(1)
    head = tl.program_id(2).to(tl.int64)
    rows = tile * ROWS + tl.arange(0, ROWS)
    seen = tile_seen * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, ROWS), dtype=tl.float32)
    if tile_seen <= tile:
        for start in range(0, num_columns, SUMMED):
            columns = start + tl.arange(0, SUMMED)
            a = tl.load(
                grad + head * grad_head + rows[:, None].to(tl.int64) * grad_token + columns[None, :] * grad_feature,
                mask=(rows[:, None] < length) & (columns[None, :] < num_columns),
                other=0.0,
            )
            b = tl.load(
                x + head * x_head + seen[None, :].to(tl.int64) * x_token + columns[:, None] * x_feature,
                mask=(seen[None, :] < length) & (columns[:, None] < num_columns),
                other=0.0,
            )
            sums = tl.dot(a, b, sums, input_precision=PRECISION)
        sums = tl.where(seen[None, :] <= rows[:, None], sums, 0.0)
    places = slopes + (head * length + rows[:, None]) * length + seen[None, :]
    is_there = (rows[:, None] < length) & (seen[None, :] < length)
    tl.store(places, sums.to(slopes.dtype.element_ty), mask=is_there)
