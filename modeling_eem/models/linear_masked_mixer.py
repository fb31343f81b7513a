"""A Linear that is fast on a CPU: many rows by oneDNN, a few in two halves of the weights.

PyTorch hands float32 products on an x86 CPU to MKL, although the oneDNN it comes with can be the faster one: on the
Zen 4 cores it was measured on, 1.1 times on 512 rows and 1.3 times on 32 (`records/speed.md`). There its sums depend
neither on where in memory the weights lie nor on how many rows there are beyond one; MKL's do.

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
# The operator that `torch.compile` writes for a Linear on a CPU; builds without oneDNN lack it.
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
# What shards (DTensor) and quantized weights are not.
_PLAIN_TENSORS = (Tensor, nn.Parameter)


class FastLinear(nn.Linear):
    """`y = x W^T + b`: `nn.Linear` in all but speed.

    Two things a function with gradients of its own cannot do: forward-mode differentiation, and leaving out W's
    gradient where only x's is asked for and W is not frozen. Up to `FEW_ROWS` rows without gradients, the last bits
    depend on where large weights lie in memory, as they do in PyTorch's own product of one row.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not _is_plain(x, weight) or x.numel() == 0:
            return F.linear(x, weight, bias)
        # Not from the layer's own sizes: under tensor parallelism its weight is a part.
        num_outputs, num_inputs = weight.shape
        num_rows = x.numel() // num_inputs
        is_halved = num_rows <= FEW_ROWS and weight.numel() >= LEAST_WEIGHTS and num_outputs % 2 == 0
        if is_halved and not torch.is_grad_enabled():
            return few_rows_linear(x, weight, bias)
        return linear_rows(x.reshape(num_rows, num_inputs), weight, bias).view(*x.shape[:-1], num_outputs)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is one of float32 numbers on a CPU, and run as it is written."""
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and type(x) in _PLAIN_TENSORS
        and type(weight) in _PLAIN_TENSORS
        and weight.layout == torch.strided
        and x.shape[-1] == weight.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def rows_product(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x W^T + b`, as `[N, O]`, by the faster library; without gradients.

    `torch.backends.mkldnn.enabled = False` leaves all products to the library that PyTorch would take.
    """
    is_taken = HAS_ONEDNN and torch.backends.mkldnn.enabled and _is_plain(x_NI, weight_OI)
    # With gaps between its rows, oneDNN has no fast way for W.
    if not is_taken or not (weight_OI.is_contiguous() or weight_OI.T.is_contiguous()):
        return F.linear(x_NI, weight_OI, bias_O)
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")


def linear_rows(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`rows_product` with its gradients, to any order."""
    if torch.is_grad_enabled():
        return _RowsProduct.apply(x_NI, weight_OI, bias_O)
    return rows_product(x_NI, weight_OI, bias_O)


class _RowsProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return rows_product(x_NI, weight_OI, bias_O)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x_NI, weight_OI, _ = inputs
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_NI if needs_weight else None, weight_OI if needs_x else None)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = linear_rows(grad_NO, weight_OI.T) if needs_x else None
        # By the BLAS, which reads transposes as they lie; oneDNN would have them copied.
        grad_weight = grad_NO.T @ x_NI if needs_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if needs_bias else None


def few_rows_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear(x [..., I], W [O, I], b)` as `W x^T` in two halves of W; O is even. Returns `[..., O]`, a view."""
    num_outputs, num_inputs = weight_OI.shape
    num_rows = x.numel() // num_inputs
    x_2IN = x.reshape(num_rows, num_inputs).T.expand(2, num_inputs, num_rows)
    weight_2OI = weight_OI.reshape(2, num_outputs // 2, num_inputs)
    if bias_O is None:
        y_2ON = torch.bmm(weight_2OI, x_2IN)
    else:
        y_2ON = torch.baddbmm(bias_O.reshape(2, num_outputs // 2, 1), weight_2OI, x_2IN)
    shape = (*x.shape[:-1], num_outputs)
    return y_2ON.view(shape) if num_rows == 1 else y_2ON.view(num_outputs, num_rows).T.view(shape)


# What a head may be to run in chunks: a product and nothing else.
PLAIN_LINEARS = (nn.Linear, FastLinear)

__all__ = ["HAS_ONEDNN", "LEAST_WEIGHTS", "PLAIN_LINEARS", "FastLinear", "few_rows_linear", "rows_product"]
