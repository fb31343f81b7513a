"""Occlusion distances against whole logits with the memory and without it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem.entropy import OcclusionEntropy
from modeling_eem.models.loss_eem import CHUNK_SIZE

PAIRS = [("masked_mixer", "masked_mixer"), ("llama", "llama"), ("gpt_neox", "qwen2"), ("gpt2", "gpt2")]


def _expected(metric: str, clean: Tensor, occluded: Tensor, targets: Tensor) -> Tensor:
    difference = clean - occluded
    if metric == "l1":
        return difference.abs().sum(-1)
    if metric == "l2":
        return difference.square().sum(-1).sqrt()
    if metric == "max":
        return difference.abs().max(-1).values
    if metric == "cosine":
        return 1 - (clean * occluded).sum(-1) / (clean.square().sum(-1) * occluded.square().sum(-1)).sqrt()
    losses = [F.cross_entropy(logits, targets, reduction="none") for logits in (clean, occluded)]
    return losses[1] - losses[0]


@torch.no_grad()
@pytest.mark.parametrize("metric", ["l1", "l2", "max", "cosine", "loss"])
@pytest.mark.parametrize("introduction", ["token", "embedding", "combination"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_equals_distances_of_whole_logits(
    pair: tuple[str, str], introduction: str, metric: str, make_eem: Callable, make_rows: Callable
) -> None:
    """The output before a token describes it; its code holds the whole row; a code rounded to int4 too."""
    model = make_eem(*pair, introduction, code_dtype="int4")
    rows = make_rows(16, 2, 9)
    mask = torch.arange(16) < torch.tensor([[16], [2], [9]])
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    result = OcclusionEntropy(model, metric)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        code = model.encode(row[None])
        clean = model(row[None], code=code).logits[0, :-1].double()
        occluded = model(row[None], occlude_memory=True).logits[0, :-1].double()
        expected = _expected(metric, clean, occluded, row[1:])
        assert values[0].isnan()
        torch.testing.assert_close(values[1:], expected, rtol=1e-5, atol=1e-5)


def test_logits_exist_in_chunks_only(make_eem: Callable, make_rows: Callable) -> None:
    model = make_eem("llama", "llama")
    largest = []
    model.lm_head.register_forward_hook(lambda module, args, output: largest.append(len(output)))
    for metric in ("l1", "loss"):
        OcclusionEntropy(model, metric)(input_ids=torch.stack(make_rows(*[16] * 60)))
        assert max(largest) <= CHUNK_SIZE and sum(largest) == 2 * 15 * 60
        largest.clear()


@pytest.mark.parametrize(
    "metric, unit", [("l1", "logit L1 distance"), ("cosine", "logit cosine distance"), ("loss", "nats")]
)
def test_only_a_difference_of_losses_has_bits(metric: str, unit: str, make_eem: Callable, make_rows: Callable) -> None:
    result = OcclusionEntropy(make_eem(), metric)(input_ids=make_rows(5)[0][None])
    assert (result.method, result.unit) == ("occlusion", unit)
    if unit == "nats":
        result.bits()
    else:
        with pytest.raises(ValueError, match=f"bits need entropies in nats; occlusion measures {unit}"):
            result.bits()


def test_an_unknown_metric(make_eem: Callable) -> None:
    with pytest.raises(ValueError, match="metric must be one of l1, l2, max, cosine, loss, not 'kl'"):
        OcclusionEntropy(make_eem(), "kl")
