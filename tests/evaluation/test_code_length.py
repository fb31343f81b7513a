"""Held-out code length against the definition, token by token in float64."""

import math
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig
from modeling_eem.bits import CodeLength, bits_per_byte
from modeling_eem.data import CausalCollator, Row, RowFormat, windows
from modeling_eem.evaluation import (
    code_bits_of,
    held_out_code_length,
    row_codes,
    row_nats,
    window_code_lengths,
)

VOCAB_SIZE, CONTEXT, PAD, BOS, CODE_SIZE = 40, 16, 0, 1, 6
# Bits of a code of six numbers, the scale that int formats store included.
CODE_BITS = {"float16": 96, "bfloat16": 96, "float8_e4m3fn": 48, "float8_e5m2": 48, "float6_e3m2": 36}
CODE_BITS |= {f"int{bits}": 6 * bits + 32 for bits in range(2, 9)}
KINDS = ["masked_mixer", "llama", "eem", "eem_autoencoder"]


@pytest.fixture
def rows() -> list[Row]:
    """Windows of five documents: full ones and short ones, tokens of 1 to 4 bytes."""
    row_format = RowFormat(CONTEXT, BOS, torch.cat([torch.zeros(2), torch.arange(VOCAB_SIZE - 2) % 4 + 1]).long())
    documents = [torch.randint(2, VOCAB_SIZE, (length,)).tolist() for length in (40, 1, 15, 7, 30)]
    return list(windows(enumerate(documents), row_format))


@pytest.fixture
def collator() -> CausalCollator:
    return CausalCollator(pad_token_id=PAD, vocab_size=VOCAB_SIZE, max_length=CONTEXT)


@pytest.fixture
def make_model(backbone_config: Callable[..., Any], eem_config: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    def make(kind: str, **changes: Any) -> PreTrainedModel:
        if kind == "eem_autoencoder":
            backbones = {
                "encoder_config": backbone_config("masked_mixer", hidden_size=16, position_alignment="right"),
                "decoder_config": backbone_config("masked_mixer"),
            }
            return EEMAutoencoder(EEMAutoencoderConfig(**backbones, bottleneck_size=CODE_SIZE, code_dtype="int4"))
        if kind == "eem":
            return AutoModelForCausalLM.from_config(eem_config(**{"code_dtype": "int4", "noise_scale": 0.5} | changes))
        return AutoModelForCausalLM.from_config(backbone_config(kind, **changes))

    return make


@torch.no_grad()
def _naive_nats(model: PreTrainedModel, rows: list[Row]) -> float:
    """Row by row, -Σ log p(token | before it), from logits; an EEM is shown the row's stored code.

    An autoencoder's logits at a position are of the token there.
    """
    model.eval()
    nats = 0.0
    for row in rows:
        input_ids = torch.tensor([row["input_ids"]])
        is_autoencoder = isinstance(model, EEMAutoencoder)
        memory = (
            {} if model.config.model_type in ("masked_mixer", "llama", "gpt2") else {"code": model.encode(input_ids)}
        )
        inputs = {"attention_mask": torch.ones_like(input_ids)} if is_autoencoder else {"input_ids": input_ids}
        log_probs = model(**inputs, **memory).logits[0].double().log_softmax(-1)
        for at, token in enumerate(row["input_ids"][1:]):
            nats -= log_probs[at + is_autoencoder, token].item()
    return nats


def _assert_same(actual: CodeLength, expected: CodeLength) -> None:
    assert astuple(actual) == pytest.approx(astuple(expected), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_definition(
    kind: str, rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind)
    length = held_out_code_length(model, rows, collator)
    num_short = sum(len(row["input_ids"]) < CONTEXT for row in rows)
    code_bits = len(rows) * (6 * 4 + 32) if kind.startswith("eem") else 0
    side_bits = len(rows) + num_short * math.log2(CONTEXT - 1)
    assert 0 < num_short < len(rows)
    assert length.nll_nats == pytest.approx(_naive_nats(model, rows), rel=1e-6)
    assert length.code_bits == code_bits and length.side_bits == pytest.approx(side_bits)
    assert length.num_tokens == 40 + 1 + 15 + 7 + 30
    assert length.num_bytes == sum((token - 2) % 4 + 1 for row in rows for token in row["input_ids"][1:])
    total = length.nll_nats / math.log(2) + code_bits + side_bits
    assert length.total_bits == pytest.approx(total)
    assert length.bits_per_byte == pytest.approx(bits_per_byte(total, length.num_bytes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_padding_change_nothing(
    kind: str,
    batch_size: int,
    side: str,
    rows: list[Row],
    collator: CausalCollator,
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = make_model(kind)
    expected = held_out_code_length(model, rows, collator)
    for changed in (replace(collator, padding_side=side), replace(collator, padding_side=side, padding="max_length")):
        _assert_same(held_out_code_length(model, rows[::-1], changed, batch_size=batch_size), expected)


def test_a_model_of_absolute_positions_is_not_disturbed_by_left_padding(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("gpt2")
    left = held_out_code_length(model, rows, replace(collator, padding_side="left"))
    assert left.nll_nats == pytest.approx(_naive_nats(model, rows), rel=1e-6)


def test_rows_are_whole_whatever_the_collator_does_in_training(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("masked_mixer")
    length = held_out_code_length(model, rows, replace(collator, random_prefix_probability=1.0))
    assert length.nll_nats == pytest.approx(_naive_nats(model, rows), rel=1e-6)


@pytest.mark.parametrize("kind", ["masked_mixer", "eem"])
def test_each_row_has_its_own_length(
    kind: str, rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind)
    lengths = window_code_lengths(model, rows, collator, batch_size=3)
    for row, length in zip(rows, lengths, strict=True):
        _assert_same(held_out_code_length(model, [row], collator), length)
    _assert_same(held_out_code_length(model, rows, collator), sum(lengths, CodeLength()))


@pytest.mark.parametrize("kind", ["eem", "eem_autoencoder"])
def test_rows_can_be_told_from_codes_made_before(
    kind: str, rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind)
    codes_NP = row_codes(model, rows, collator, batch_size=3)
    assert codes_NP.shape == (len(rows), CODE_SIZE)
    assert row_nats(model, rows, collator, codes_NP=codes_NP) == pytest.approx(row_nats(model, rows, collator))
    others = row_nats(model, rows, collator, codes_NP=codes_NP.roll(1, dims=0))
    assert max(abs(a - b) for a, b in zip(others, row_nats(model, rows, collator))) > 1e-3


@pytest.mark.parametrize("code_dtype", CODE_BITS)
def test_code_bits_by_format(code_dtype: str, make_model: Callable[..., PreTrainedModel]) -> None:
    assert code_bits_of(make_model("eem", code_dtype=code_dtype).config) == CODE_BITS[code_dtype]


def test_a_code_without_bottleneck_is_the_encoder_s_output(make_model: Callable[..., PreTrainedModel]) -> None:
    assert code_bits_of(make_model("eem", bottleneck_size=None, code_dtype="int8").config) == 16 * 8 + 32


@pytest.mark.parametrize("kind", ["masked_mixer", "llama"])
def test_a_causal_model_has_no_code(kind: str, make_model: Callable[..., PreTrainedModel]) -> None:
    assert code_bits_of(make_model(kind).config) == 0


def test_the_loss_is_measured_with_the_stored_code(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    """Two bits lose what sixteen keep."""
    nats = []
    for code_dtype in ("float16", "int2"):
        torch.manual_seed(0)
        nats.append(held_out_code_length(make_model("eem", code_dtype=code_dtype), rows, collator).nll_nats)
    assert abs(nats[0] - nats[1]) > 1e-3


def test_the_loss_follows_the_format_that_is_charged(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("eem", code_dtype="float16")
    fine = held_out_code_length(model, rows, collator)
    model.config.code_dtype = "int2"
    coarse = held_out_code_length(model, rows, collator)
    assert coarse.code_bits < fine.code_bits and abs(coarse.nll_nats - fine.nll_nats) > 1e-3


def test_a_code_of_no_format_is_refused(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("eem", code_dtype=None).train()
    for call in (lambda: code_bits_of(model.config), lambda: held_out_code_length(model, rows, collator)):
        with pytest.raises(ValueError, match="set config.code_dtype"):
            call()
    assert model.training


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_s_mode_is_restored_and_does_not_matter(
    kind: str,
    is_training: bool,
    rows: list[Row],
    collator: CausalCollator,
    make_model: Callable[..., PreTrainedModel],
) -> None:
    model = make_model(kind).train(is_training)
    first, second = (held_out_code_length(model, rows, collator) for _ in range(2))
    assert first == second and model.training == is_training
    assert all(p.grad is None for p in model.parameters())


def test_measuring_draws_no_random_numbers(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("masked_mixer")
    state = torch.get_rng_state()
    held_out_code_length(model, rows, collator)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mode_is_restored_after_an_error(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model("masked_mixer").train()
    with pytest.raises(ValueError, match="more than max_length = 8"):
        held_out_code_length(model, rows, replace(collator, max_length=8))
    assert model.training


def test_a_row_whose_value_is_not_finite_is_an_error_that_names_it(
    rows: list[Row], collator: CausalCollator, make_model: Callable[..., PreTrainedModel]
) -> None:
    """Finite weights can overflow, too."""
    model = make_model("llama").eval()
    model.name_or_path = "runs/broken"
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e38)
    with pytest.raises(ValueError, match=r"runs/broken: row \d+ costs (nan|inf) nats, .* earlier checkpoint"):
        row_nats(model, rows, collator)


def test_a_row_of_bos_and_eos_is_text_where_one_id_is_all_three(make_model: Callable[..., PreTrainedModel]) -> None:
    """As with GPT-2's tokenizer: such rows, which `--add-eos` makes, have no mask."""
    row = Row(input_ids=[BOS, BOS], document_ids=[0, 0], num_bytes=0)
    collator = CausalCollator(pad_token_id=BOS, vocab_size=VOCAB_SIZE, max_length=CONTEXT)
    model = make_model("llama")
    ids = torch.tensor([[BOS, BOS]])
    with torch.no_grad():
        expected = -model(ids).logits[0, 0].log_softmax(-1)[BOS].item()
    assert row_nats(model, [row], collator) == [pytest.approx(expected, abs=1e-5)]
