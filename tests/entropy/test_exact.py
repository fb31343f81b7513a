"""Exact entropies against two full-width passes a token, for every backbone, introduction and kind of code."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_eem import EEMForCausalLM
from modeling_eem.entropy import ExactEntropy, TwoModelEntropy

BACKBONES = {
    "mixers": ("masked_mixer", "masked_mixer"),
    "Llamas": ("llama", "llama"),
    "mixer, Llama": ("masked_mixer", "llama"),
    "GPT-NeoX, Qwen2": ("gpt_neox", "qwen2"),
    "GPT-2s": ("gpt2", "gpt2"),
}
CODES = {"bottleneck": (6, None), "whole": (None, None), "int4": (6, "int4"), "float8": (6, "float8_e4m3fn")}
EVERY = list(itertools.product(BACKBONES, ["token", "embedding", "combination"], CODES))


@torch.no_grad()
def two_full_passes_a_token(model: EEMForCausalLM, row_T: Tensor) -> Tensor:
    """The plain reference: the row at its full width, masked to the longer prefix and to the shorter."""
    sums = []
    for length in range(2, len(row_T) + 1):
        mask = (torch.arange(len(row_T)) < length).long()[None]
        logits = model(row_T[None], attention_mask=mask, labels=row_T[None]).logits[0, : length - 1]
        sums.append(F.cross_entropy(logits.double(), row_T[1:length], reduction="sum"))
    return torch.stack([torch.zeros((), dtype=torch.float64), *sums]).diff()


@pytest.mark.parametrize("backbones, introduction, code", EVERY, ids=map(", ".join, EVERY))
def test_equals_two_full_width_passes_a_token(
    backbones: str, introduction: str, code: str, make_eem: Callable, make_rows: Callable
) -> None:
    bottleneck_size, code_dtype = CODES[code]
    model = make_eem(*BACKBONES[backbones], introduction, bottleneck_size=bottleneck_size, code_dtype=code_dtype)
    rows = make_rows(16, 11)
    input_ids = torch.stack([rows[0], F.pad(rows[1], (0, 5))])
    mask = torch.arange(16) < torch.tensor([[16], [11]])
    result = ExactEntropy(model)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        assert values[0].isnan()
        torch.testing.assert_close(values[1:], two_full_passes_a_token(model, row), rtol=0, atol=1e-4)


@pytest.mark.parametrize("encoder", ["left-aligned mixer", "Llama that is not causal"])
def test_encoders_of_other_kinds_equal_two_full_passes(
    encoder: str, backbone_config: Callable, make_eem: Callable, make_rows: Callable
) -> None:
    config = (
        backbone_config(hidden_size=16)
        if encoder == "left-aligned mixer"
        else backbone_config("llama", hidden_size=16, is_causal=False)
    )
    model = make_eem(decoder="llama", encoder_config=config)
    (row,) = make_rows(16)
    values = ExactEntropy(model)(input_ids=row[None]).values[0, 1:]
    torch.testing.assert_close(values, two_full_passes_a_token(model, row), rtol=0, atol=1e-4)


@pytest.mark.parametrize("backbone", ["masked_mixer", "llama"])
def test_values_sum_to_the_loss_of_every_prefix(
    backbone: str, make_eem: Callable, make_rows: Callable, plain_nats: Callable
) -> None:
    """The values of a row's first m tokens sum to S of these, for every m: the first and the last token too."""
    model = make_eem(backbone, backbone)
    (row,) = make_rows(16)
    values = ExactEntropy(model)(input_ids=row[None]).values[0]
    for length in range(2, 17):
        torch.testing.assert_close(values[1:length].sum(), plain_nats(model, row[:length]), rtol=0, atol=1e-4)


def test_a_text_of_one_token_has_its_code_length(make_eem: Callable, plain_nats: Callable) -> None:
    model = make_eem("llama", "llama")
    row = torch.tensor([1, 7])
    values = ExactEntropy(model)(input_ids=row[None]).values[0]
    assert values[0].isnan()
    torch.testing.assert_close(values[1], plain_nats(model, row), rtol=0, atol=1e-6)


@torch.no_grad()
def test_sums_are_kept_in_float64(make_eem: Callable, backbone_config: Callable) -> None:
    """At 1,024 tokens a value is a difference of sums near 4,000 nats: as the same model has them in float64."""
    config = {
        "encoder_config": backbone_config("llama", hidden_size=16, max_position_embeddings=1024),
        "decoder_config": backbone_config("llama", max_position_embeddings=1025),
    }
    model = make_eem(**config)
    row = torch.cat([torch.tensor([1]), torch.randint(2, 40, (1023,))])
    prefixes = [(0, 1022), (0, 1023), (0, 1024)]
    sums = ExactEntropy(model).nats([row], prefixes)
    expected = ExactEntropy(model.double()).nats([row], prefixes)
    assert sums[-1] > 3000
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(sums.diff(), expected.diff(), rtol=0, atol=1e-4)


def test_warns_of_a_model_that_has_met_full_rows_only(make_eem: Callable) -> None:
    with CaptureLogger(logging.get_logger("modeling_eem.entropy.exact")) as logged:
        ExactEntropy(make_eem("llama", "llama"))
        assert logged.out == ""
        ExactEntropy(make_eem("llama", "llama", random_prefix_probability=0.0))
    assert "random_prefix_probability=0" in logged.out


# Two models


def test_two_models_split_the_difference(make_eem: Callable, make_rows: Callable, plain_nats: Callable) -> None:
    longer, shorter = make_eem("llama", "llama"), make_eem("masked_mixer", "llama", "embedding")
    rows = make_rows(16, 2, 9)
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(16) < torch.tensor([[16], [2], [9]])
    result = TwoModelEntropy(longer, shorter)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        assert values[0].isnan()
        for j in range(1, len(row)):
            before = plain_nats(shorter, row[:j]) if j > 1 else 0.0
            torch.testing.assert_close(values[j], plain_nats(longer, row[: j + 1]) - before, rtol=0, atol=1e-4)


def test_one_model_twice_is_the_exact_estimator(make_eem: Callable, make_rows: Callable) -> None:
    model = make_eem("llama", "llama")
    (row,) = make_rows(16)
    twice = TwoModelEntropy(model, model)(input_ids=row[None]).values
    expected = ExactEntropy(model)(input_ids=row[None]).values
    torch.testing.assert_close(twice, expected, rtol=0, atol=1e-4, equal_nan=True)


def test_the_longer_model_may_have_one_token_more(make_eem: Callable, make_rows: Callable) -> None:
    config = make_eem("llama", "llama").config.decoder_config
    config.max_position_embeddings = 12 + 1
    shorter = make_eem("llama", decoder_config=config)
    estimator = TwoModelEntropy(make_eem("llama", "llama"), shorter)
    assert estimator(input_ids=make_rows(13)[0][None]).values[0, 1:].isfinite().all()
    with pytest.raises(ValueError, match="row 0 has 14 tokens, more than the model's 13"):
        estimator(input_ids=make_rows(14)[0][None])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bottleneck_size": 5}, "codes hold 6 and 5 numbers"),
        ({"vocab_size": 50}, "40 and 50 tokens"),
        ({"code_dtype": "int4"}, "codes are stored as None and int4"),
    ],
)
def test_two_models_that_do_not_go_together(changes: dict, message: str, make_eem: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        TwoModelEntropy(make_eem("llama", "llama"), make_eem("llama", "llama", **changes))
