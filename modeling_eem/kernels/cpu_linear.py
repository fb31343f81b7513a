"""Faster ways on a CPU to a Linear's own numbers.

* `onednn_linear`, `onednn_product`: products of many rows by oneDNN. On an x86 CPU PyTorch gives them to MKL, although
  its own oneDNN can be faster. oneDNN's sums do not depend on the weights' address, nor on the number of rows if there
  is more than one; MKL's do. With a few rows, as in generation, reading the weights takes the time. `x W^T` reads them
  with one core; `W x^T` in two halves, one batched product, reads them with two. On Intel's own processors MKL reads
  them faster still, and does. In bfloat16 a Linear with a bias goes by oneDNN too, which adds the bias on the way.
* `onednn_gelu_linear`: the second half of a feed-forward in training, which keeps half of its memory.

Each declines what it was not made for (other devices and dtypes, shards, quantized or watched layers) by returning
None, and the models then compute it themselves. `records/speed-notes.md` shows the gain of each.
"""

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from transformers.activations import GELUActivation

from modeling_eem.models.mixing_masked_mixer import is_watched

# Up to so many rows, two halves of W measured faster.
FEW_ROWS = 4
# For so many numbers in W and more; a smaller W fits a core's own cache.
LEAST_WEIGHTS = 1 << 16
# The operator that `torch.compile` writes for a Linear on a CPU; builds without oneDNN lack it.
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _linear_flops(x_shape: torch.Size, weight_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
        """So that PyTorch's FLOP counter sees these products too; a product and a sum are two."""
        return 2 * x_shape.numel() * weight_shape[0]


# Shards (DTensor) and quantized weights are neither.
_PLAIN_TENSORS = (Tensor, nn.Parameter)


def _is_intel() -> bool:
    """Whether the processor is Intel's."""
    info = Path("/proc/cpuinfo")
    told = info.read_text() if info.exists() else platform.processor()
    return "GenuineIntel" in told


# With few rows there, MKL was 2.0 (4 rows) and 2.5 times (one) as fast as two halves by the batched product.
MKL_IS_AT_HOME = torch.backends.mkl.is_available() and _is_intel()


def has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU."""
    return HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_transformed() -> bool:
    """Whether functions are being transformed, or differentiated forwards: neither knows oneDNN's operators."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def is_plain(x: Tensor, weight: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether a product is of plain tensors of these dtypes on a CPU, without autocast and transforms of functions."""
    return (
        not _is_transformed()
        and x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype
        and x.dtype in dtypes
        and type(x) in _PLAIN_TENSORS
        and type(weight) in _PLAIN_TENSORS
        and weight.layout == torch.strided
        and not torch.is_autocast_enabled("cpu")
    )


def onednn_linear(layer: nn.Module, x: Tensor) -> Tensor | None:
    """A plain `nn.Linear` without hooks.

    A custom autograd function cannot do two things: forward-mode differentiation, and leaving out W's gradient if only
    x's is needed and W is not frozen. Up to `FEW_ROWS` rows without gradients, the last bits depend on the address of
    large weights, as they do in PyTorch's own product of one row.
    """
    if type(layer) is not nn.Linear or is_watched(layer):
        return None
    is_training = torch.is_grad_enabled()
    weight = layer.weight
    are_few = not is_training and x.numel() <= FEW_ROWS * weight.shape[-1] and weight.numel() >= LEAST_WEIGHTS
    if are_few and MKL_IS_AT_HOME:
        return None
    if is_training and _is_low(layer, x):
        low_x, weight, bias = (tensor.bfloat16() for tensor in (x, layer.weight, layer.bias))
        return _linear_rows(low_x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))
    if not _is_taken(x, layer.weight):
        return None
    # Not from the layer's own sizes: under tensor parallelism its weight is only a part.
    num_outputs, num_inputs = layer.weight.shape
    if are_few and num_outputs % 2 == 0:
        return few_rows_linear(x, layer.weight, layer.bias)
    return _linear_rows(x.reshape(-1, num_inputs), layer.weight, layer.bias).view(*x.shape[:-1], num_outputs)


def onednn_gelu_linear(layer: nn.Module, activation: nn.Module, x: Tensor) -> Tensor | None:
    """`layer(gelu(x))` of a plain `nn.Linear` in training: keeps x alone, and computes the gelu again in backward."""
    is_gelu = type(activation) is GELUActivation and activation.act is F.gelu and not is_watched(activation)
    if not is_gelu or not torch.is_grad_enabled() or type(layer) is not nn.Linear or is_watched(layer):
        return None
    weight, bias = layer.weight, layer.bias
    if x.dtype == torch.bfloat16 and _is_low(layer, x):
        weight, bias = weight.bfloat16(), bias.bfloat16()
    elif not _is_taken(x, weight):
        return None
    return _GeluProduct.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


def onednn_product(x_NI: Tensor, weight_OI: Tensor) -> Tensor | None:
    """`x W^T [N, O]`, without gradients."""
    return onednn(x_NI, weight_OI, None) if _is_taken(x_NI, weight_OI) else None


def _is_taken(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether oneDNN takes a product; `torch.backends.mkldnn.enabled = False` leaves all to PyTorch's choice."""
    return (
        HAS_ONEDNN
        and torch.backends.mkldnn.enabled
        and is_plain(x, weight_OI, torch.float32)
        and x.numel() > 0
        and x.shape[-1] == weight_OI.shape[-1]
    )


def _is_low(layer: nn.Linear, x: Tensor) -> bool:
    """Whether a Linear with a bias computes in bfloat16 in training; elsewhere autocast keeps its copies of weights.

    PyTorch 2.13 copies the bias to all rows before the product; with AMX that takes as long as the product.
    """
    tensors = (x, layer.weight, layer.bias)
    dtypes = [torch.bfloat16]
    if torch.is_autocast_enabled("cpu"):
        dtypes = [torch.float32, torch.bfloat16] if torch.get_autocast_dtype("cpu") == torch.bfloat16 else []
    return (
        has_bfloat16()
        and not _is_transformed()
        and torch.backends.mkldnn.enabled
        and all(type(tensor) in _PLAIN_TENSORS and tensor.is_cpu and tensor.dtype in dtypes for tensor in tensors)
        and layer.weight.layout == torch.strided
        and x.numel() > 0
        and x.shape[-1] == layer.weight.shape[-1]
    )


def onednn(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    # oneDNN has no fast way for a W with gaps between its rows.
    if not (weight_OI.is_contiguous() or weight_OI.T.is_contiguous()):
        return F.linear(x_NI, weight_OI, bias_O)
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")


def _linear_rows(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x W^T + b [N, O]`, with gradients of any order."""
    if torch.is_grad_enabled():
        return _RowsProduct.apply(x_NI, weight_OI, bias_O)
    return onednn(x_NI, weight_OI, bias_O)


class _RowsProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return onednn(x_NI, weight_OI, bias_O)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x_NI, weight_OI, _ = inputs
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_NI if needs_weight else None, weight_OI if needs_x else None)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = _linear_rows(grad_NO, weight_OI.T) if needs_x else None
        # By the BLAS, which reads transposes in place; oneDNN would copy them.
        grad_weight = grad_NO.T @ x_NI if needs_weight else None
        return grad_x, grad_weight, grad_NO.sum(0) if needs_bias else None


class _GeluProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        return onednn(F.gelu(x_NI), weight_OI, bias_O)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x_NI, weight_OI, _ = inputs
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x_NI if needs_x or needs_weight else None, weight_OI if needs_x else None)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_weight = grad_NO.T @ F.gelu(x_NI) if needs_weight else None
        grad_x = torch.ops.aten.gelu_backward(_linear_rows(grad_NO, weight_OI.T), x_NI) if needs_x else None
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


__all__ = [
    "HAS_ONEDNN",
    "MKL_IS_AT_HOME",
    "few_rows_linear",
    "has_bfloat16",
    "is_plain",
    "onednn",
    "onednn_gelu_linear",
    "onednn_linear",
    "onednn_product",
]
