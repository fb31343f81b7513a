"""A Linear that is fast on a CPU: many rows by oneDNN, a few in two halves of the weights.

PyTorch hands float32 products on an x86 CPU to MKL, although the oneDNN it comes with can be the faster one: by a
fifth to a half on the Zen 4 cores it was measured on (`benchmarks/choice_cases.py`). There its sums depend neither on
where in memory the weights lie nor on how many rows there are beyond one; MKL's do.

A few rows, as in generation, are different: it is the weights that have to be read, and `x W^T` reads them with one
core. `W x^T` in two halves, one batched product, reads them with two.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows up to which two halves of W are the faster way, by measurement.
FEW_ROWS = 4
# Numbers in W from which they are; smaller ones lie in a core's own cache.
LEAST_WEIGHTS = 1 << 16
_PLAIN_TENSORS = (Tensor, nn.Parameter)


class FastLinear(nn.Linear):
    """`y = x W^T + b`: `nn.Linear` in all but speed."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        num_rows = x.numel() // self.in_features
        if num_rows == 0 or not _is_plain(x, weight):
            return F.linear(x, weight, bias)
        is_halved = num_rows <= FEW_ROWS and weight.numel() >= LEAST_WEIGHTS and self.out_features % 2 == 0
        if is_halved and not torch.is_grad_enabled():
            return few_rows_linear(x, weight, bias)
        y_NO = linear_rows(x.reshape(num_rows, self.in_features), weight, bias)
        return y_NO.view(*x.shape[:-1], self.out_features)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is one of plain float32 numbers on a CPU, run as written; not of shards or quantized weights."""
    return (
        x.is_cpu
        and type(x) in _PLAIN_TENSORS
        and type(weight) in _PLAIN_TENSORS
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def rows_product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x W^T + b`, as `[N, O]`, by the faster library; without gradients.

    `torch.backends.mkldnn.enabled = False` leaves all products to the library that PyTorch would take.
    """
    # With gaps between its rows, oneDNN has no fast way for W.
    is_dense = weight_OI.is_contiguous() or weight_OI.T.is_contiguous()
    if HAS_ONEDNN and torch.backends.mkldnn.enabled and is_dense and _is_plain(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


# The operator that `torch.compile` writes for a Linear on a CPU; builds without oneDNN lack it.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear_rows(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`rows_product` with its gradients, to any order."""
    if torch.is_grad_enabled():
        return _RowsProduct.apply(x_NI, weight_OI, bias_O)
    return rows_product(x_NI, weight_OI, bias_O)


class _RowsProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return rows_product(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = linear_rows(grad_NO, weight_OI.T) if needs_x else None
        grad_weight = grad_NO.T @ x_NI if needs_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if needs_bias else None


def few_rows_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear(x [..., I], W [O, I], b)` as `W x^T` in two halves of W; O is even. Returns `[..., O]`, a view."""
    num_outputs, num_inputs = weight_OI.shape
    num_rows = x.numel() // num_inputs
    x_2IN = x.reshape(num_rows, num_inputs).T.expand(2, num_inputs, num_rows)
    weight_2OI = weight_OI.view(2, num_outputs // 2, num_inputs)
    if bias_O is None:
        y_2ON = torch.bmm(weight_2OI, x_2IN)
    else:
        y_2ON = torch.baddbmm(bias_O.view(2, num_outputs // 2, 1), weight_2OI, x_2IN)
    shape = (*x.shape[:-1], num_outputs)
    return y_2ON.view(shape) if num_rows == 1 else y_2ON.view(num_outputs, num_rows).T.view(shape)


# What a head may be to run in chunks: a product and nothing else.
PLAIN_LINEARS = (nn.Linear, FastLinear)

__all__ = ["HAS_ONEDNN", "PLAIN_LINEARS", "FastLinear", "few_rows_linear", "linear_rows", "rows_product"]
