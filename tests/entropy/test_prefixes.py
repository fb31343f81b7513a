"""How often and how wide prefixes are computed, and which encoders need only one pass for all of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling_eem.entropy import CausalEntropy, ExactEntropy
from modeling_eem.entropy.prefixes import is_prefix_consistent, prefix_nats
from modeling_eem.kernels.cpu_linear import FEW_ROWS

CONTEXT = 16
ENCODERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "right-aligned mixer": ("masked_mixer", {"position_alignment": "right"}, False),
    "left-aligned mixer": ("masked_mixer", {"position_alignment": "left"}, True),
    "left-aligned mixer with heads": ("masked_mixer", {"num_mixing_heads": 2, "mixing_kernel_size": 3}, True),
    "mixer that is not causal": ("masked_mixer", {"is_causal": False}, False),
    "Llama": ("llama", {}, True),
    "GPT-2": ("gpt2", {}, True),
    "GPT-NeoX": ("gpt_neox", {}, True),
    "Llama that is not causal": ("llama", {"is_causal": False}, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("encoder, changes, expected", ENCODERS.values(), ids=ENCODERS)
@torch.no_grad()
def test_causal_left_aligned_encoders_are_prefix_consistent(
    encoder: str,
    changes: dict[str, Any],
    expected: bool,
    dtype: torch.dtype,
    make_eem: Callable,
    backbone_config: Callable,
) -> None:
    config = backbone_config(encoder, hidden_size=16, **changes)
    model = make_eem(decoder="llama", encoder_config=config).to(dtype)
    assert is_prefix_consistent(model) is expected


@pytest.mark.parametrize("encoder, passes", [("llama", 1), ("masked_mixer", 15)])
def test_each_prefix_is_computed_once_and_no_wider_than_it_is(
    encoder: str, passes: int, make_eem: Callable, make_rows: Callable
) -> None:
    """A prefix-consistent encoder runs once for a row; a decoder reads a prefix but for its last token."""
    model = make_eem(encoder, "llama")
    estimator = ExactEntropy(model, batch_tokens=1)
    encoded, decoded = [], []
    model.model.encoder.embed_tokens.register_forward_hook(lambda module, args, output: encoded.append(args[0].shape))
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: decoded.append(args[0].shape))
    for row in make_rows(CONTEXT, CONTEXT):
        encoded.clear()
        decoded.clear()
        estimator(input_ids=row[None])
        assert len(encoded) == passes and max(encoded) == (1, CONTEXT)
        assert sorted(decoded) == [(1, length) for length in range(1, CONTEXT)]


@pytest.mark.parametrize("batch_tokens", [20, 64, 1000])
def test_passes_hold_prefixes_of_about_one_length(batch_tokens: int, make_eem: Callable, make_rows: Callable) -> None:
    model = make_eem("llama", "llama")
    shapes: list[tuple[int, int]] = []
    estimator = ExactEntropy(model, batch_tokens)
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    estimator(input_ids=torch.stack(make_rows(*[CONTEXT] * 6)))
    prefixes = 6 * (CONTEXT - 1)
    copies = FEW_ROWS * sum(rows == FEW_ROWS + 1 for rows, _ in shapes)  # that fill up passes of few rows
    assert prefixes <= sum(rows for rows, _ in shapes) <= prefixes + copies
    assert all(rows * (width + 1) <= batch_tokens for rows, width in shapes)


@torch.no_grad()
def test_any_prefixes_in_any_order(make_eem: Callable, make_rows: Callable, plain_nats: Callable) -> None:
    """Some of a window's prefixes, twice or not at all; a length of 1 is BOS alone and costs nothing."""
    windows = make_rows(CONTEXT, 5, 9)
    prefixes = [(2, 9), (0, 3), (0, 16), (1, 1), (0, 3), (2, 2)]
    for encoder in ("llama", "masked_mixer"):
        model = make_eem(encoder, "llama")
        nats = prefix_nats(model, windows, prefixes, batch_tokens=30, encodes_prefixes=encoder == "llama")
        expected: list[Tensor] = [plain_nats(model, windows[window][:length]) for window, length in prefixes]
        torch.testing.assert_close(nats, torch.stack(expected), rtol=0, atol=1e-4)
        assert nats[3] == 0


@pytest.mark.parametrize("batch_tokens", [4096, 40])
def test_no_value_depends_on_where_the_weights_lie(
    batch_tokens: int, make_eem: Callable, make_causal: Callable, make_rows: Callable
) -> None:
    """Two processes have them elsewhere: a lone row of two tokens came out an ulp apart."""
    rows = make_rows(2, 5)
    for make, estimator in ((make_eem, ExactEntropy), (lambda: make_causal("masked_mixer"), CausalEntropy)):
        model = make()
        found = set()
        for offset in (0, 1, 2, 4, 8, 12):
            _move_weights(model, offset)
            measure = estimator(model, batch_tokens=batch_tokens)
            values = [measure(input_ids=row_T[None]).values[0, 1:] for row_T in rows]
            found.add(tuple(torch.cat(values).tolist()))
        assert len(found) == 1


def _move_weights(model: PreTrainedModel, offset: int) -> None:
    """Put every weight `offset` numbers behind a multiple of 64 bytes."""
    for parameter in model.parameters():
        memory = torch.empty(parameter.numel() + 32)
        start = -memory.data_ptr() // 4 % 16 + offset
        moved = memory[start : start + parameter.numel()].view(parameter.shape)
        parameter.data = moved.copy_(parameter.data)
