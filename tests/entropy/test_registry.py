"""Estimators by name."""

from collections.abc import Callable

import pytest
import torch

from modeling_eem import entropy
from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import ESTIMATORS, EntropyEstimator, estimate, estimator_class


def test_every_estimator_has_its_name() -> None:
    public = [getattr(entropy, name) for name in entropy.__all__ if name.endswith("Entropy")]
    assert {estimator.method: estimator for estimator in public} == ESTIMATORS
    assert all(issubclass(estimator, EntropyEstimator) for estimator in ESTIMATORS.values())


def test_estimate_is_the_estimator_called(make_eem: Callable, make_causal: Callable, make_rows: Callable) -> None:
    model = make_eem("llama", "llama")
    input_ids = torch.stack(make_rows(9, 9))
    mask = torch.ones_like(input_ids)
    mask[1, 5:] = 0
    result = estimate("occlusion", model, metric="loss", input_ids=input_ids, attention_mask=mask)
    expected = entropy.OcclusionEntropy(model, "loss")(input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(result.values, expected.values, equal_nan=True)
    assert estimate("two_models", model, model, input_ids=input_ids).method == "two_models"
    tokenizer = train_tokenizer(["some text"], 260)
    causal = make_causal("llama", vocab_size=260, bos_token_id=0)
    result = estimate("teacher", causal, tokenizer, tokenizer, texts=["text"], tokenizer=tokenizer)
    expected = estimate("causal", causal, texts=["text"], tokenizer=tokenizer)
    torch.testing.assert_close(result.values, expected.values, equal_nan=True)


@pytest.mark.parametrize(
    "name, hint",
    [("oclusion", "did you mean 'occlusion'"), ("gradient", "did you mean 'gradient_input'"), ("x", r"\.$")],
)
def test_unknown_names_are_told_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"there is no estimator '{name}', only exact, two_models.*{hint}"):
        estimator_class(name)
