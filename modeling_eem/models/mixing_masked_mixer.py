"""Token mixing: one learned matrix over positions, shared by all features of a head.

    y[i, f] = bias[i] + sum_{j <= i} sum_p W[i, j, p] x[j, f + p - (k - 1) // 2]

i.e. a 1-D convolution of `k` taps whose channels are the TOKENS and whose spatial axis is the FEATURE axis, padded
with (k - 1) // 2 zeros on the left and k // 2 on the right. Shapes: B batch, T tokens, Q new tokens, D features,
H heads, K taps, E = D / H.

This file holds the equation (`reference_token_mixing`), what the models run (`token_mixing`: one dense product a head,
on any device and in any dtype), and the forms for generation and packed rows. Every sum over tokens and taps is one
library call, so half precision rounds it once.

`KERNELS` is the one place where something faster may step in. It is optional: in code that came with a checkpoint it
is empty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Operation -> a function of its arguments that returns the same numbers faster, or None if it declines:
# "token_mixing" as `dense_token_mixing`, "linear" of (layer, x), "activated_linear" of (layer, activation, x),
# "product" of (x [N, I], weight [O, I]).
KERNELS: dict[str, Callable[..., Tensor | None]] = {}
# Rows of W that one read of a cache serves: the more rows, the less often a batch of texts is read.
LOOK_AHEAD = 16


# PyTorch has no public way to ask for hooks: what calls them is found by the ends of names, so none can be missing.
_ENDS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
_HOOKS = [name for name in vars(nn.Module()) if name.endswith(_ENDS)]
_GLOBAL_HOOKS = [hooks for name, hooks in vars(nn.modules.module).items() if name.endswith("_hooks")]  # dictionaries


def is_watched(layer: nn.Module) -> bool:
    """Whether calling the layer does more than its class's forward: hooks on it or on all modules, another forward."""
    attributes = vars(layer)
    return "forward" in attributes or any(_GLOBAL_HOOKS) or any(map(attributes.get, _HOOKS))


def by_kernel(operation: str, *arguments: Any) -> Tensor | None:
    """The result of the operation's kernel; None without a kernel, and where PyTorch traces the model."""
    is_traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # it is documented
    if torch.compiler.is_compiling() or is_traced or operation not in KERNELS:
        return None
    return KERNELS[operation](*arguments)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`."""
    y = by_kernel("linear", layer, x)
    return layer(x) if y is None else y


def activated_linear(layer: nn.Module, activation: nn.Module, x: Tensor) -> Tensor:
    """`layer(activation(x))`."""
    y = by_kernel("activated_linear", layer, activation, x)
    return linear(layer, activation(x)) if y is None else y


def product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`x W^T [N, O]`, without gradients."""
    y_NO = by_kernel("product", x_NI, weight_OI)
    return F.linear(x_NI, weight_OI) if y_NO is None else y_NO


def token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
    """`reference_token_mixing` on the layout `[H, T, B, E]`."""
    y_HTBE = by_kernel("token_mixing", weight_HTTK, bias_HT, x_HTBE, is_causal)
    return dense_token_mixing(weight_HTTK, bias_HT, x_HTBE, is_causal) if y_HTBE is None else y_HTBE


def reference_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_BTD: Tensor, is_causal: bool) -> Tensor:
    """The equation above, a loop over heads around `conv1d`; the truth that the others are tested against."""
    num_heads, kernel_size = weight_HTTK.shape[0], weight_HTTK.shape[-1]
    if is_causal:
        weight_HTTK = without_future(weight_HTTK)
    padded = _pad_features(x_BTD.unflatten(-1, (num_heads, -1)), kernel_size).unbind(2)
    return torch.cat([F.conv1d(x, weight, bias) for x, weight, bias in zip(padded, weight_HTTK, bias_HT)], dim=-1)


def dense_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
    """One masked product a head: a matrix product, or with taps a convolution."""
    if weight_HTTK.shape[-1] > 1 and x_HTBE.is_cuda and x_HTBE.dtype == torch.float32:
        # cuDNN's convolutions round float32 to TF32 unless they are told not to; products do so only on request.
        return tap_product_mixing(weight_HTTK, bias_HT, x_HTBE, is_causal)
    if weight_HTTK.shape[-1] > 1:
        x_BTD = x_HTBE.movedim(0, 2).flatten(2).transpose(0, 1)
        y_BTD = reference_token_mixing(weight_HTTK, bias_HT, x_BTD, is_causal)
        return y_BTD.transpose(0, 1).unflatten(-1, (len(weight_HTTK), -1)).movedim(2, 0)
    weight_HTT = weight_HTTK[..., 0]
    if is_causal:
        weight_HTT = weight_HTT.tril()
    return torch.baddbmm(bias_HT[..., None], weight_HTT, x_HTBE.flatten(2)).view_as(x_HTBE)


def tap_product_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_HTBE: Tensor, is_causal: bool) -> Tensor:
    """`token_mixing` with taps as one product of a head: each tap's columns of x stand below one another."""
    if is_causal:
        weight_HTTK = without_future(weight_HTTK)
    num_taps = weight_HTTK.shape[-1]
    x_HTKF = _by_tap(x_HTBE.transpose(1, 2), num_taps).transpose(1, 2).flatten(2)
    return torch.baddbmm(bias_HT[..., None], weight_HTTK.flatten(2), x_HTKF).view_as(x_HTBE)


def without_future(weight_HTTK: Tensor) -> Tensor:
    """`W [..., T, T, K]` with zeros above the diagonal."""
    return weight_HTTK.movedim(-1, 0).tril().movedim(0, -1).contiguous()


def _pad_features(x: Tensor, kernel_size: int) -> Tensor:
    """Pad with zeros where taps reach past the features. Without taps nothing is copied; `F.pad` would copy."""
    return x if kernel_size == 1 else F.pad(x, ((kernel_size - 1) // 2, kernel_size // 2))


def _by_tap(x: Tensor, kernel_size: int) -> Tensor:
    """`x [..., T, E]` as every tap reads it, `[..., T * K, E]`: a convolution is then one product."""
    if kernel_size == 1:
        return x
    return _pad_features(x, kernel_size).unfold(-1, x.shape[-1], 1).flatten(-3, -2)


def continued_token_mixing(weight_HTTK: Tensor, bias_HT: Tensor, x_TBD: Tensor, new_length: int) -> Tensor:
    """The last `new_length` rows of a causal `token_mixing` of `x [T, B, D]`, as `[Q, B, D]`: for generation."""
    length = x_TBD.shape[0]
    rows = slice(length - new_length, length)
    weight_HQTK = weight_HTTK[:, rows, :length].movedim(3, 1).tril(rows.start).movedim(1, 3)
    return _as_QBD(_add_products(bias_HT[:, rows, None], weight_HQTK, x_TBD), x_TBD)


@dataclass
class LookAhead:
    """What the tokens before `start` add to the rows of W from `start` on, biases included: `sums [H, Q, F]`."""

    start: int
    sums_HQF: Tensor


def next_token_mixing(
    weight_HTTK: Tensor, bias_HT: Tensor, x_TBD: Tensor, ahead: LookAhead | None
) -> tuple[Tensor, LookAhead]:
    """`continued_token_mixing` of the last token alone, as `[1, B, D]`, and the sums that the next tokens can use.

    Once in `LOOK_AHEAD` new tokens, all earlier tokens are read and their part of the next rows is summed. Each token
    then adds only what came since.
    """
    position = x_TBD.shape[0] - 1
    if ahead is None or not 0 <= position - ahead.start < ahead.sums_HQF.shape[1]:
        rows = slice(position, position + LOOK_AHEAD)
        earlier = slice(0, position)
        sums_HQF = _add_products(bias_HT[:, rows, None], weight_HTTK[:, rows, earlier], x_TBD[earlier])
        ahead = LookAhead(position, sums_HQF)
    row, row_ahead = slice(position, position + 1), slice(position - ahead.start, position - ahead.start + 1)
    since = slice(ahead.start, position + 1)
    sums_H1F = _add_products(ahead.sums_HQF[:, row_ahead], weight_HTTK[:, row, since], x_TBD[since])
    return _as_QBD(sums_H1F, x_TBD), ahead


def _add_products(sums: Tensor, weight_HQTK: Tensor, x_TBD: Tensor) -> Tensor:
    """`sums [H, Q, 1 or F] + sum_p W[..., p] x[..., p : p + E]` over all given tokens; F is B rows of E features."""
    num_heads, _, length, kernel_size = weight_HQTK.shape
    if num_heads == kernel_size == 1:
        return torch.addmm(sums[0], weight_HQTK[0, ..., 0], x_TBD.reshape(length, -1))[None]
    x_HBTE = x_TBD.unflatten(-1, (num_heads, -1)).permute(2, 1, 0, 3)
    x_HSF = _by_tap(x_HBTE, kernel_size).transpose(1, 2).flatten(2)
    return torch.baddbmm(sums, weight_HQTK.flatten(2), x_HSF)


def _as_QBD(sums_HQF: Tensor, x_TBD: Tensor) -> Tensor:
    """Features of all heads side by side, as in `x`."""
    if len(sums_HQF) == 1:
        return sums_HQF.view(-1, *x_TBD.shape[1:])
    return sums_HQF.unflatten(2, (x_TBD.shape[1], -1)).movedim(0, 2).flatten(2)


def gathered_token_mixing(
    weight_HTTK: Tensor, bias_HT: Tensor, x_BTHE: Tensor, rows_BQ: Tensor, columns_BT: Tensor, visible_BQT: Tensor
) -> Tensor:
    """Mixing for tokens at any positions: `W[rows, columns]` where `visible`, else 0. Returns `[B, Q, H, E]`.

    For packed rows, cached decoding and given `position_ids`. It gathers one matrix for each row of the batch. The
    leading axis of `rows`, `columns` and `visible` may be 1 when all rows share their positions.
    """
    batch_size, _, num_heads, _ = x_BTHE.shape
    x_BHSE = _by_tap(x_BTHE.transpose(1, 2), weight_HTTK.shape[-1])
    weight_HBQTK = weight_HTTK[:, rows_BQ[:, :, None], columns_BT[:, None, :]]
    weight_BHQS = weight_HBQTK.masked_fill(~visible_BQT[..., None], 0.0).transpose(0, 1).flatten(3)
    weight_BHQS = weight_BHQS.expand(batch_size, -1, -1, -1)
    bias_BHQ = bias_HT[:, rows_BQ].transpose(0, 1).expand(batch_size, -1, -1)
    y_NQE = torch.baddbmm(bias_BHQ.flatten(0, 1)[..., None], weight_BHQS.flatten(0, 1), x_BHSE.flatten(0, 1))
    return y_NQE.unflatten(0, (batch_size, num_heads)).transpose(1, 2)


__all__ = [
    "KERNELS",
    "LookAhead",
    "activated_linear",
    "continued_token_mixing",
    "dense_token_mixing",
    "gathered_token_mixing",
    "is_watched",
    "linear",
    "next_token_mixing",
    "product",
    "reference_token_mixing",
    "tap_product_mixing",
    "token_mixing",
    "without_future",
]
