"""Stored codes against in-memory rounding, LLM.int8() by hand, and the layer sweep against rounding by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig
from modeling_eem.data import CausalCollator, Row, RowFormat, windows
from modeling_eem.evaluation import held_out_code_length, row_codes, row_nats
from modeling_eem.evaluation.quantization import (
    PROBE,
    PROBE_UP,
    UNROUNDED,
    FormatCost,
    Int8Linear,
    code_histogram,
    evenly_spread,
    find_bottleneck,
    int8_probe,
    load_codes,
    measure_formats,
    number_of_formats,
    store_codes,
    sweep_layers,
    swept_layers,
    unrounded_codes,
)
from modeling_eem.models.quantization_eem import CODE_FORMATS, ScaledInteger

VOCAB_SIZE, CONTEXT, CODE_SIZE = 40, 16, 6


@pytest.fixture
def rows() -> list[Row]:
    row_format = RowFormat(CONTEXT, 1, torch.cat([torch.zeros(2), torch.ones(VOCAB_SIZE - 2)]).long())
    documents = [torch.randint(2, VOCAB_SIZE, (length,)).tolist() for length in (40, 3, 15)]
    return list(windows(enumerate(documents), row_format))


@pytest.fixture
def collator() -> CausalCollator:
    return CausalCollator(pad_token_id=0, vocab_size=VOCAB_SIZE, max_length=CONTEXT)


@pytest.fixture
def model(eem_config: Callable[..., Any]) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(eem_config(code_dtype="int8")).eval()
    with torch.no_grad():  # an untrained memory hardly matters
        model.model.memory_proj.weight.mul_(8)
    return model


@pytest.fixture
def autoencoder(backbone_config: Callable[..., Any]) -> PreTrainedModel:
    encoder = backbone_config("masked_mixer", hidden_size=16, position_alignment="right")
    config = {"encoder_config": encoder, "decoder_config": backbone_config("masked_mixer")}
    return EEMAutoencoder(EEMAutoencoderConfig(**config, bottleneck_size=CODE_SIZE)).eval()


@pytest.mark.parametrize("name", CODE_FORMATS)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 64)])
def test_stored_codes_are_the_rounded_ones_bit_for_bit(name: str, shape: tuple[int, int]) -> None:
    codes_NP = torch.randn(shape) * 3
    stored = store_codes(codes_NP, name)
    assert torch.equal(load_codes(stored), CODE_FORMATS[name].round(codes_NP))
    exact = shape[0] * CODE_FORMATS[name].code_bits(shape[1])
    assert exact <= stored.num_bits < exact + 8, "the size of bytes, and no more than a byte is filled up"


def test_codes_of_a_model_in_training_are_stored_as_others() -> None:
    codes_NP = torch.randn(3, 4)
    assert store_codes(codes_NP.clone().requires_grad_(), "int4") == store_codes(codes_NP, "int4")


def test_a_format_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'int9': choose one of float16, .*int2"):
        store_codes(torch.randn(3, 4), "int9")


@pytest.mark.parametrize("kind", ["model", "autoencoder"])
@pytest.mark.parametrize("name", CODE_FORMATS)
def test_unpacked_codes_lose_exactly_what_rounding_in_memory_loses(
    kind: str, name: str, rows: list[Row], collator: CausalCollator, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(kind)
    model.config.code_dtype = None
    from_bytes = load_codes(store_codes(row_codes(model, rows, collator), name))
    nats = row_nats(model, rows, collator, codes_NP=from_bytes)
    model.config.code_dtype = name
    assert nats == row_nats(model, rows, collator)


def _by_name(costs: list[FormatCost]) -> dict[str, FormatCost]:
    return {cost.code_format: cost for cost in costs}


def test_every_format_is_measured(model: PreTrainedModel, rows: list[Row], collator: CausalCollator) -> None:
    done = []
    costs = _by_name(measure_formats(model, rows, collator, advance=done.append))
    assert list(costs) == [UNROUNDED, *CODE_FORMATS, PROBE, PROBE_UP]
    assert sum(done) == number_of_formats(model) * len(rows) and model.config.code_dtype == "int8"
    for name in CODE_FORMATS:
        model.config.code_dtype = name
        expected, actual = held_out_code_length(model, rows, collator), costs[name].length
        assert actual.nll_nats == pytest.approx(expected.nll_nats, rel=1e-12)
        assert 0 <= actual.code_bits - expected.code_bits < 8 and actual.side_bits == expected.side_bits
        nats, tokens = zip(*costs[name].by_document.values())
        assert (sum(nats), sum(tokens)) == (pytest.approx(actual.nll_nats), actual.num_tokens) and len(nats) == 3
        assert (actual.num_bytes, actual.num_tokens) == (expected.num_bytes, expected.num_tokens)
    assert costs["int2"].length.nll_nats != costs[UNROUNDED].length.nll_nats
    assert costs[PROBE].length.nll_nats == pytest.approx(costs["int8"].length.nll_nats, rel=1e-7)
    assert costs[PROBE].bits_a_code == costs["int8"].bits_a_code
    assert costs[PROBE_UP].length.nll_nats != costs[PROBE].length.nll_nats


def test_a_model_without_up_has_no_row_for_it(
    eem_config: Callable[..., Any], rows: list[Row], collator: CausalCollator
) -> None:
    model = AutoModelForCausalLM.from_config(eem_config(memory_introduction="embedding"))
    costs = _by_name(measure_formats(model, rows, collator))
    assert PROBE in costs and PROBE_UP not in costs and len(costs) == number_of_formats(model)


def test_the_probe_is_the_format_int8() -> None:
    """The same integers and scales, bit for bit; their product to the last place of a float32."""
    codes_NP = torch.randn(50, 64) * torch.rand(50, 1) * 10
    integers_NP, scale_N, _ = int8_vectorwise_quant(codes_NP)
    expected_NP, expected_N1 = CODE_FORMATS["int8"].encode(codes_NP)
    assert torch.equal(integers_NP.int(), expected_NP - 127) and torch.equal(scale_N, expected_N1.squeeze(1))
    torch.testing.assert_close(int8_probe(codes_NP), CODE_FORMATS["int8"].round(codes_NP), rtol=2e-7, atol=0)


def test_a_linear_under_int8_is_the_integers_by_hand() -> None:
    linear, x_BP = nn.Linear(12, 5), torch.randn(7, 12)
    actual = Int8Linear(linear)(x_BP)
    for b in range(7):
        for d in range(5):
            x, weight = x_BP[b].tolist(), linear.weight[d].tolist()
            scale_x, scale_w = max(map(abs, x)), max(map(abs, weight))
            integers = sum(round(u * 127 / scale_x) * round(w * 127 / scale_w) for u, w in zip(x, weight))
            expected = integers * scale_x * scale_w / 127**2 + linear.bias[d].item()
            assert actual[b, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not torch.allclose(actual, linear(x_BP), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes quantizes activations on a GPU only")
def test_the_gpu_s_layer_is_the_same_arithmetic() -> None:
    codes_NP = torch.randn(50, 64)
    torch.testing.assert_close(int8_probe(codes_NP.cuda()).cpu(), int8_probe(codes_NP), rtol=1e-2, atol=1e-2)


def test_the_sweep_rounds_one_thing_at_a_time(
    model: PreTrainedModel, rows: list[Row], collator: CausalCollator
) -> None:
    before = copy.deepcopy(model.state_dict())
    effects = sweep_layers(model, rows, collator)
    layers = swept_layers(model)
    assert len(effects) == 4 * len(layers)
    for kind in (nn.Linear, nn.Embedding):
        assert any(isinstance(module, kind) for module in layers.values())
    assert all(isinstance(module, nn.Linear | nn.Embedding) for module in layers.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(math.isnan(effect.nats) for effect in effects)
    by_key = {(effect.layer, effect.part, effect.code_format): effect.nats for effect in effects}
    assert len(by_key) == len(effects)

    tokens = sum(len(row["input_ids"]) - 1 for row in rows)
    with unrounded_codes(model):
        plain = sum(row_nats(model, rows, collator)) / tokens
        rounded = copy.deepcopy(model)
        with torch.no_grad():
            rounded.lm_head.weight.copy_(rounded.lm_head.weight.to(torch.float8_e5m2).float())
        weights = sum(row_nats(rounded, rows, collator)) / tokens - plain
        codes_NP = row_codes(model, rows, collator).to(torch.float8_e4m3fn).float()
        down = sum(row_nats(model, rows, collator, codes_NP=codes_NP)) / tokens - plain
    assert by_key["lm_head", "weights", "float8_e5m2"] == pytest.approx(weights, abs=1e-9) and weights != 0
    name = next(name for name in layers if name.endswith("bottleneck.down"))
    assert by_key[name, "activations", "float8_e4m3fn"] == pytest.approx(down, abs=1e-9) and down != 0


def test_a_causal_model_has_no_code(backbone_config: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="'llama' model has no code"):
        find_bottleneck(AutoModelForCausalLM.from_config(backbone_config("llama")))


def test_histograms_have_equal_buckets_and_count_everything() -> None:
    codes_NP = torch.randn(10, 64)
    histogram = code_histogram(codes_NP)
    assert len(histogram.edges) == 129 and len(histogram.counts) == 10
    assert [sum(counts) for counts in histogram.counts] == [64] * 10 and sum(histogram.aggregated) == 640
    low, high = histogram.edges[0], histogram.edges[-1]
    assert (low, high) == (pytest.approx(codes_NP.min().item()), pytest.approx(codes_NP.max().item()))
    place = int((codes_NP[3, 5].item() - low) / (high - low) * 128)
    assert histogram.counts[3][min(place, 127)] > 0


@pytest.mark.parametrize(("number", "wanted"), [(127, 64), (64, 64), (5, 64), (190, 64), (8, 1)])
def test_rows_of_a_sweep_are_spread_over_all(number: int, wanted: int) -> None:
    chosen = evenly_spread(range(number), wanted)
    assert len(set(chosen)) == min(number, wanted)
    steps = {later - earlier for earlier, later in zip(chosen, chosen[1:])}
    assert max(steps, default=1) - min(steps, default=1) <= 1 and number - chosen[-1] <= max(steps, default=number)


def test_the_layers_of_gpt2_are_swept_too() -> None:
    """They are Conv1D, which multiplies as a Linear does."""
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=VOCAB_SIZE, n_positions=CONTEXT)
    names = set(swept_layers(AutoModelForCausalLM.from_config(config)))
    assert {f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")} <= names


def test_a_format_that_misstates_its_scale_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bits would be charged wrongly."""

    class Half(ScaledInteger):
        scale_bits = 16

    monkeypatch.setitem(CODE_FORMATS, "own", Half(8))
    with pytest.raises(ValueError, match="'own' says scale_bits 16; its scale is stored in 32 bits"):
        store_codes(torch.randn(3, CODE_SIZE), "own")


def test_a_constant_code_has_a_histogram() -> None:
    histogram = code_histogram(torch.full((2, CODE_SIZE), 0.25), 8)
    assert histogram.edges[0] == -0.25 and histogram.edges[-1] == 0.75
    assert histogram.aggregated[4] == sum(histogram.aggregated) == 2 * CODE_SIZE
