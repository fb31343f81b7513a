"""Patches join to the text and add up; continuations are scored behind their prefixes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import CausalEntropy, conditional_entropies, entropy_patches
from modeling_eem.entropy.patches import patch_starts

TEXTS = ["the naïve whale swam", "a whale", "w"]
NAN = float("nan")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["the whale swam, the naïve whale"] * 3, 268)


@pytest.fixture
def model(make_causal: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_causal("llama", vocab_size=268, max_position_embeddings=64, bos_token_id=0)


@pytest.mark.parametrize(
    "values, threshold, monotonic, starts",
    [
        ([NAN, 1.0, 3.0, 3.5, 1.0, 2.5], 2.0, False, [0, 2, 3, 5]),
        ([NAN, 1.0, 3.0, 3.5, 1.0, 2.5], 1.0, True, [0, 2, 5]),
        ([5.0], 2.0, True, [0]),
        ([NAN, NAN], 0.0, False, [0]),
    ],
)
def test_where_patches_begin(values: list[float], threshold: float, monotonic: bool, starts: list[int]) -> None:
    assert patch_starts(torch.tensor(values), threshold, monotonic).nonzero().flatten().tolist() == starts


@pytest.mark.parametrize("monotonic", [False, True])
@pytest.mark.parametrize("with_predictions", [False, True])
def test_patches_join_to_the_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monotonic: bool, with_predictions: bool
) -> None:
    result = CausalEntropy(model, with_predictions=with_predictions)(TEXTS, tokenizer)
    cut_by = result.predictive_nats if with_predictions else result.values
    for threshold in (-1e9, 0.1, float(cut_by[0].nanmedian()), 1e9):
        frame = entropy_patches(result, threshold, monotonic)
        for row, text in enumerate(TEXTS):
            patches = frame[frame["row"] == row]
            joined = b"".join(text.encode()[a:b] for a, b in zip(patches["start_byte"], patches["end_byte"]))
            assert joined == text.encode() and patches["tokens"].sum() == result.attention_mask[row].sum()
            assert patches["entropy_nats"].sum() == pytest.approx(result.totals()[row].item())
    assert len(entropy_patches(result, 1e9)) == len(TEXTS), "nothing is above it: a patch a text"
    with pytest.raises(ValueError, match="know no text"):
        entropy_patches(replace(result, texts=None), 1.0)


def test_a_continuation_is_what_the_whole_has_more_than_its_prefix(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    estimator = CausalEntropy(model)
    prefixes, continuations = ["the", "the whale", ""], [" whale swam", " swam", "naïve"]
    scores = conditional_entropies(estimator, prefixes, continuations, tokenizer).totals()
    wholes = estimator([a + b for a, b in zip(prefixes, continuations)], tokenizer).totals()
    before = torch.cat([estimator(prefixes[:2], tokenizer).totals(), torch.zeros(1)])
    torch.testing.assert_close(scores, wholes - before)
    with pytest.raises(ValueError, match="2 prefixes need as many continuations, not 1"):
        conditional_entropies(estimator, ["a", "b"], ["c"], tokenizer)
