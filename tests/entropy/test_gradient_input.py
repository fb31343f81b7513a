"""Gradient × input against one backward pass an output, through the whole logits."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modeling_eem import EEMForCausalLM
from modeling_eem.entropy import GradientInputEntropy

PAIRS = [("masked_mixer", "masked_mixer"), ("llama", "llama"), ("masked_mixer", "llama"), ("gpt_neox", "gpt2")]
EVERY = list(itertools.product(PAIRS, ["token", "embedding", "combination"], [6, None]))


def one_backward_an_output(model: EEMForCausalLM, row_T: Tensor) -> Tensor:
    """`Σ_f |∂‖logits_j‖₁ / ∂memory_f · memory_f|` for each output but the last, `[t - 1]`."""
    code = model.encode(row_T[None])
    memory = model.model.memory(code).detach().requires_grad_()
    inputs = model.model.introduce(memory, model.model.embed_tokens(row_T[None]))
    logits = model.lm_head(model.model.decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state[0])
    norms = logits[-len(row_T) :].abs().sum(-1)
    gradients = [torch.autograd.grad(norm, memory, retain_graph=True)[0] for norm in norms[:-1]]
    return torch.stack([(gradient * memory).abs().sum() for gradient in gradients]).detach()


@pytest.mark.parametrize("pair, introduction, bottleneck_size", EVERY, ids=map(str, EVERY))
def test_equals_one_backward_an_output(
    pair: tuple[str, str], introduction: str, bottleneck_size: int | None, make_eem: Callable, make_rows: Callable
) -> None:
    model = make_eem(*pair, introduction, bottleneck_size=bottleneck_size)
    rows = make_rows(16, 2, 9)
    mask = torch.arange(16) < torch.tensor([[16], [2], [9]])
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    result = GradientInputEntropy(model, batch_tokens=100)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        assert values[0].isnan()
        torch.testing.assert_close(values[1:], one_backward_an_output(model, row).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("introduction", ["token", "embedding"])
def test_the_memory_of_a_rounded_code(introduction: str, make_eem: Callable, make_rows: Callable) -> None:
    """The gradient is that of what enters the decoder: rounding before it does not hide it."""
    model = make_eem("llama", "llama", introduction, code_dtype="int4")
    (row,) = make_rows(16)
    values = GradientInputEntropy(model)(input_ids=row[None]).values[0, 1:]
    torch.testing.assert_close(values, one_backward_an_output(model, row).double(), rtol=1e-4, atol=1e-4)
    assert (values > 0).all()


def test_it_is_no_entropy(make_eem: Callable, make_rows: Callable) -> None:
    result = GradientInputEntropy(make_eem())(input_ids=make_rows(5)[0][None])
    with pytest.raises(ValueError, match="bits need entropies in nats; gradient_input measures gradient × input"):
        result.bits()
