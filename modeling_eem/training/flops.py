"""Floating-point operations of a training step, counted as they run."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PreTrainedModel

from modeling_eem.kernels.cpu_linear import HAS_ONEDNN
from modeling_eem.loading import in_mode


def _addmm_flops(_out_shape: torch.Size, a_shape: torch.Size, b_shape: torch.Size, **_kwargs: object) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def _attention_flops(name: str) -> Callable[..., int]:
    """Counts an attention operator, or its backward, whose first three or four arguments are [gradient,] q, k, v.

    Causal attention counts only what is computed: query i meets keys 0 … i, about half of the square.
    """
    operator = getattr(torch.ops.aten, name)
    place = [argument.name for argument in operator.default._schema.arguments].index("is_causal")
    whole, first = (sdpa_backward_flop_count, 1) if name.endswith("backward") else (sdpa_flop_count, 0)

    def flops(*shapes: Any, **named: Any) -> int:
        queries, keys = shapes[first][-2], shapes[first + 1][-2]
        is_causal = shapes[place] if len(shapes) > place else named.get("is_causal", False)
        seen = sum(min(i + 1, keys) for i in range(queries)) if is_causal else queries * keys
        return whole(*shapes[: first + 3]) * seen // (queries * keys)

    return flops


def _rows_flops(rows_shape: torch.Size, weight_shape: torch.Size, *_args: object, **_kwargs: object) -> int:
    return 2 * rows_shape[0] * rows_shape[1] * weight_shape[0]


_ATTENTION = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
# torch's counter lacks products by oneDNN or into a slice, and does not know that causal attention skips a triangle.
_KNOWN_HERE: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, name): _attention_flops(name)
    for kind in _ATTENTION
    for name in (f"_scaled_dot_product_{kind}", f"_scaled_dot_product_{kind}_backward")
}
_KNOWN_HERE[torch.ops.aten.addmm_] = _addmm_flops
if HAS_ONEDNN:
    _KNOWN_HERE[torch.ops.mkldnn._linear_pointwise] = _rows_flops


def training_flops(model: PreTrainedModel, length: int) -> int:
    """FLOPs of forward and backward for one row of `length` tokens: two for each multiply-add of a matrix product.

    It counts exactly what runs: skipped blocks of a triangle cost nothing, and the head costs what its chunks cost.
    Parameters, their gradients and the random generator stay as they were.
    """
    device = next(model.parameters()).device
    input_ids = torch.zeros(1, length, dtype=torch.long, device=device)

    def step() -> None:
        loss = model(input_ids=input_ids, labels=input_ids).loss
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    with in_mode(model, is_training=True), torch.random.fork_rng():
        return counted_flops(step)


def counted_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions of a call."""
    with FlopCounterMode(display=False, custom_mapping=_KNOWN_HERE) as counter:
        run()
    return counter.get_total_flops()
