"""What every estimator keeps: values that hang on nothing but the text, a model left as it was, clear refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import (
    CausalEntropy,
    EntropyEstimator,
    ExactEntropy,
    GradientInputEntropy,
    OcclusionEntropy,
    RegressionEntropy,
    SlidingEntropy,
    TwoModelEntropy,
)

ESTIMATORS: dict[str, Callable[..., EntropyEstimator]] = {
    "exact": lambda eem, causal, regression, **options: ExactEntropy(eem, **options),
    "two models": lambda eem, causal, regression, **options: TwoModelEntropy(eem, eem, **options),
    "sliding": lambda eem, causal, regression, **options: SlidingEntropy(eem, stride=3, **options),
    "occlusion, L1": lambda eem, causal, regression, **options: OcclusionEntropy(eem, **options),
    "occlusion, loss": lambda eem, causal, regression, **options: OcclusionEntropy(eem, "loss", **options),
    "gradient": lambda eem, causal, regression, **options: GradientInputEntropy(eem, **options),
    "causal": lambda eem, causal, regression, **options: CausalEntropy(causal, **options),
    "regression, prefix": lambda eem, causal, regression, **options: RegressionEntropy(
        regression, "prefix", **options
    ),
    "regression, token": lambda eem, causal, regression, **options: RegressionEntropy(regression, "token", **options),
}


@pytest.fixture(params=["masked_mixer", "llama"])
def models(
    request: pytest.FixtureRequest, make_eem: Callable, make_causal: Callable, make_regression: Callable
) -> tuple[Any, Any, Any]:
    return make_eem(request.param, request.param), make_causal(request.param), make_regression(request.param)


@pytest.fixture(params=ESTIMATORS.values(), ids=ESTIMATORS)
def make(request: pytest.FixtureRequest, models: tuple[Any, Any, Any]) -> Callable[..., EntropyEstimator]:
    return lambda **options: request.param(*models, **options)


def test_batches_and_padding_change_no_value(
    make: Callable[..., EntropyEstimator], make_rows: Callable, pad_rows: Callable
) -> None:
    """Alone or in a batch, padded on either side with any tokens, in passes of any size: 1e-4 nats."""
    rows = make_rows(16, 2, 9, 12, 9)
    alone = [make()(input_ids=row[None]).values[0] for row in rows]
    for side in ("left", "right", "both"):
        for batch_tokens in (1, 40, 4096):
            input_ids, mask = pad_rows(rows, side, width=16)
            result = make(batch_tokens=batch_tokens)(input_ids=input_ids, attention_mask=mask)
            assert torch.equal(result.ids, input_ids) and torch.equal(result.attention_mask, mask.bool())
            assert result.values.dtype == torch.float64 and result.values[mask == 0].isnan().all()
            for values, expected in zip(result.rows(), alone):
                assert values[0].isnan() and values[1:].isfinite().all()
                scale = max(1.0, expected[1:].abs().max().item() / 10)  # logit distances are tens and hundreds
                torch.testing.assert_close(values, expected, rtol=0, atol=1e-4 * scale, equal_nan=True)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_is_left_as_it_was(
    make: Callable[..., EntropyEstimator], models: tuple[Any, Any, Any], make_rows: Callable, is_training: bool
) -> None:
    """Its mode, its gradients, and the state of the random generator: noise is off while it is measured."""
    for model in models:
        model.train(is_training)
    models[0].config.noise_scale = 0.5
    before, generator = make_rows(12)[0][None], torch.get_rng_state()
    estimator = make()
    first, second = (estimator(input_ids=before).values for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), generator)
    for model in models:
        assert all(module.training == is_training for module in model.modules())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_models_run(
    make: Callable[..., EntropyEstimator], models: tuple[Any, Any, Any], make_rows: Callable
) -> None:
    row = make_rows(12)[0][None]
    expected = make()(input_ids=row).values[0, 1:]
    for model in models:
        model.to(torch.bfloat16)
    values = make()(input_ids=row).values[0, 1:]
    assert values.dtype == torch.float64
    assert (values - expected).abs().mean() < 0.2 * expected.abs().mean()


def test_rows_that_cannot_be_measured(make: Callable[..., EntropyEstimator], make_rows: Callable) -> None:
    estimator = make()
    (row,) = make_rows(17)
    refused: list[tuple[Tensor, str]] = [
        (row[None, :1], "row 0 holds no token to score after its first"),
        (torch.tensor([[1, 2, 40]]), "row 0 holds id 40, outside the vocabulary of 40"),
        (torch.tensor([[1, -2, 4]]), "row 0 holds id -2"),
        (torch.zeros(1, 0, dtype=torch.long), r"not \[1, 0\]"),
        (row[:3], r"not \[3\]"),
    ]
    if estimator.max_length is not None:
        refused.append((row[None], "row 0 has 17 tokens, more than the model's 16: cut it into windows"))
    if not isinstance(estimator, CausalEntropy):
        refused.append((torch.tensor([[1, 2, 3], [2, 1, 3]]), r"row 1 begins with id 2, not with BOS \(1\)"))
    for input_ids, message in refused:
        with pytest.raises(ValueError, match=message):
            estimator(input_ids=input_ids)


def test_calls_that_say_too_little_or_too_much(make: Callable[..., EntropyEstimator], make_rows: Callable) -> None:
    estimator = make()
    input_ids = make_rows(5)[0][None]
    tokenizer = train_tokenizer(["some text to learn tokens from"], 260)
    for arguments, message in [
        ({}, "one of the two"),
        ({"texts": ["a"], "input_ids": input_ids}, "one of the two"),
        ({"texts": ["a"]}, "texts need the model's tokenizer"),
        ({"texts": ["a"], "tokenizer": tokenizer}, "the tokenizer has 260 tokens and the model 40"),
        ({"input_ids": input_ids, "tokenizer": tokenizer}, "the tokenizer has 260 tokens and the model 40"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimator(**arguments)
    with pytest.raises(ValueError, match="batch_tokens must be at least 1"):
        make(batch_tokens=0)


def test_what_is_no_number_is_an_error(
    make: Callable[..., EntropyEstimator], models: tuple[Any, Any, Any], make_rows: Callable
) -> None:
    """NaN in the weights of the head, or of everything: not "not scored", as it was taken for."""
    rows = torch.stack(make_rows(9, 9))
    estimator = make()
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
    with pytest.raises(ValueError, match="row 0, token 1: the model gives nan, not an entropy: its weights"):
        estimator(input_ids=rows)


def test_float16_that_overflows_is_an_error(make_causal: Callable, make_rows: Callable) -> None:
    model = make_causal("llama").half()
    with torch.no_grad():
        model.lm_head.weight.mul_(5e4)
    row = make_rows(9)[0][None]
    with pytest.raises(ValueError, match=r"row 0, token \d+: the model gives .*float16 is too narrow for it"):
        CausalEntropy(model)(input_ids=row)


@pytest.mark.parametrize("estimator", [ExactEntropy, SlidingEntropy, OcclusionEntropy, GradientInputEntropy])
def test_a_causal_model_has_no_memory(estimator: type[EntropyEstimator], make_causal: Callable) -> None:
    with pytest.raises(
        ValueError, match=f"{estimator.__name__} needs an entropy estimation model .* 'llama' .*Causal"
    ):
        estimator(make_causal("llama"))


def test_texts_are_read_with_their_bytes(make_eem: Callable) -> None:
    """From texts or from their ids, the same values; a literal special token is text, BOS comes before."""
    texts = ["€ <|endoftext|>", "é"]
    tokenizer = train_tokenizer(texts, 266)
    model = make_eem("llama", "llama", vocab_size=266, bos_token_id=0)
    estimator = OcclusionEntropy(model)
    result = estimator(texts, tokenizer)
    assert result.texts == tuple(text.encode() for text in texts)
    assert result.ids[:, 0].tolist() == [0, 0] and (result.ids[:, 1:][result.attention_mask[:, 1:]] > 1).all()
    assert result.offsets[:, 0].tolist() == [[0, 0], [0, 0]] and result.offsets[0, -1, 1] == len(texts[0].encode())
    again = estimator(tokenizer=tokenizer, input_ids=result.ids, attention_mask=result.attention_mask)
    assert again.texts == result.texts and torch.equal(again.offsets, result.offsets)
    torch.testing.assert_close(again.values, result.values, equal_nan=True)
    with pytest.raises(ValueError, match="text 1 is empty"):
        estimator(["a", ""], tokenizer)
    with pytest.raises(ValueError, match="the tokenizer's BOS is 0 and the model's 1"):
        OcclusionEntropy(make_eem("llama", "llama", vocab_size=266))(texts, tokenizer)
