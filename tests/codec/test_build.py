"""From float to integer models: what is kept, and what is refused."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerFast

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.codec import Codec, IntegerModel, build_integer_model, compare_bits
from modeling_eem.codec.build import quantize_rows
from modeling_eem.codec.calibration import best_step
from modeling_eem.codec.text import TokenTable
from modeling_eem.codec.weights import check_tensors

MakeModel = Callable[[str], IntegerModel]
MakeFloat = Callable[..., PreTrainedModel]
TEXTS = ["a ship came over the sea from far away, and the sails were grey. " * 4]
SHORT = ["the sea"] * 200


@pytest.mark.parametrize("kind", ["flat", "heads", "taps", "token", "embedding", "combination"])
def test_integer_bits_are_the_float_bits(integer_model: MakeModel, float_model: MakeFloat, kind: str) -> None:
    model = integer_model(kind)
    vocab_size, bos = model.sizes.vocab_size, model.sizes.bos_token_id
    report = compare_bits(float_model(kind, vocab_size, bos_token_id=bos), model, TEXTS)
    assert abs(report.ratio - 1) < 0.005


def test_ranges_are_those_of_whole_windows(float_model: MakeFloat, integer_model: MakeModel) -> None:
    """However many short texts stand before the long ones: they show a model's first positions alone."""
    tokenizer = integer_model("flat").tokenizer
    model = float_model("flat", len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    first, last = (build_integer_model(model, tokenizer, texts) for texts in (TEXTS + SHORT, SHORT + TEXTS))
    assert first.sizes == last.sizes and first.tensors.keys() == last.tensors.keys()
    assert all(np.array_equal(first.tensors[name], last.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize("kind", ["flat", "heads"])
def test_pruned_rows_keep_their_bias(float_model: MakeFloat, integer_model: MakeModel, kind: str) -> None:
    tokenizer = integer_model("flat").tokenizer
    model = float_model(kind, len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    with torch.no_grad():
        layer = model.model.layers[0]
        for weight, bias in (
            (layer.mlp.up_proj.weight, layer.mlp.up_proj.bias),
            (layer.mixing.weight, layer.mixing.bias),
        ):
            weight.view(-1, *weight.shape[-2:])[-1][3] = 0.0
            bias.view(-1, bias.shape[-1])[-1][3] = 0.1
    report = compare_bits(model, build_integer_model(model, tokenizer, TEXTS), TEXTS)
    assert abs(report.ratio - 1) < 0.005


def test_models_without_a_table_or_a_window_are_refused(float_model: MakeFloat, integer_model: MakeModel) -> None:
    tokenizer = integer_model("flat").tokenizer
    model = float_model("flat", len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    model.model.layers[0].mlp.act_fn = torch.nn.PReLU()
    with pytest.raises(ValueError, match="parameters of its own"):
        build_integer_model(model, tokenizer, TEXTS)
    model = float_model("flat", len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    model.config.max_position_embeddings = 1
    with pytest.raises(ValueError, match="no text fits"):
        build_integer_model(model, tokenizer, TEXTS)


def test_rows_are_rounded_to_half_a_step() -> None:
    weight = torch.randn(5, 40) * torch.tensor([1e-3, 1.0, 0.0, 50.0, 1e-6])[:, None]
    integers, scale = quantize_rows(weight)
    error = np.abs(integers * scale[:, None] - weight.double().numpy())
    assert (error <= 0.5001 * scale[:, None]).all() and np.abs(integers).max() == 127


def test_a_step_may_saturate_outliers() -> None:
    values = torch.cat([torch.randn(100_000), torch.tensor([100.0])])
    assert best_step(values) < 100 / 127
    assert math.isclose(best_step(torch.linspace(-1, 1, 10_001)), 1 / 127, rel_tol=0.11)


def test_other_models_are_refused(float_model: MakeFloat, integer_model: MakeModel) -> None:
    from transformers import LlamaConfig

    tokenizer = integer_model("flat").tokenizer
    llama = AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=280)
    )
    with pytest.raises(ValueError, match="needs a MaskedMixerForCausalLM"):
        build_integer_model(llama, tokenizer, TEXTS)
    right = MaskedMixerForCausalLM(
        MaskedMixerConfig(hidden_size=16, num_hidden_layers=1, position_alignment="right", bos_token_id=1)
    )
    with pytest.raises(ValueError, match="right-aligned"):
        build_integer_model(right, tokenizer, TEXTS)
    bos = tokenizer.bos_token_id
    without_format = float_model("token", len(tokenizer), bos_token_id=bos)
    without_format.config.code_dtype = None
    with pytest.raises(ValueError, match="storage format"):
        build_integer_model(without_format, tokenizer, TEXTS)
    with pytest.raises(ValueError, match="no text"):
        build_integer_model(float_model("flat", len(tokenizer), bos_token_id=bos), tokenizer, [""])
    with pytest.raises(ValueError, match="tokenizer.json"):
        build_integer_model(float_model("flat", len(tokenizer)), ByT5Tokenizer(), TEXTS)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(ValueError, match="not byte-level"):
        build_integer_model(float_model("flat", len(tokenizer)), words, TEXTS)


def test_tokenizers_that_the_codec_cannot_use_are_refused(float_model: MakeFloat, integer_model: MakeModel) -> None:
    tokenizer = integer_model("flat").tokenizer
    size, bos = len(tokenizer), tokenizer.bos_token_id
    with pytest.raises(ValueError, match="BOS is 0 and the model's 1"):
        build_integer_model(float_model("flat", size, bos_token_id=1), tokenizer, TEXTS)
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<|call|>"])
    model = float_model("flat", size, bos_token_id=bos)
    with pytest.raises(ValueError, match="281 tokens and the model 280"):
        build_integer_model(model, larger, TEXTS)
    lowering, prefixing = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    lowering.backend_tokenizer.normalizer = normalizers.Lowercase()
    prefixing.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for changing in (lowering, prefixing):
        with pytest.raises(ValueError, match="changes the bytes of every calibration text"):
            build_integer_model(model, changing, ["A ship came over the sea. " * 4])
        build_integer_model(model, changing, ["A ship came.", " a ship came over the sea."])  # the second is kept


def test_a_token_that_the_model_does_not_have_becomes_bytes(integer_model: MakeModel) -> None:
    """As in a codec model that was built before such tokenizers were refused."""
    model = integer_model("flat")
    larger = Tokenizer.from_str(model._tokenizer_json)
    larger.add_tokens(["<|call|>"])
    codec = Codec(IntegerModel(model.sizes, model.tensors, model.tokenizer, larger.to_str()))
    for data in (b"a ship <|call|> came", TEXTS[0].encode() + b"<|call|>" + b"\xff" + TEXTS[0].encode()):
        assert codec.decompress(codec.compress(data)) == data
    table = TokenTable(larger, model.vocab_size)
    assert table.encode(b"a ship <|call|> came") is None and table.encode(b"a ship came") is not None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.up.bias", lambda tensor: np.full_like(tensor, 2**31 - 1)),  # sums past int32
        ("0.mixing.bias", lambda tensor: np.full_like(tensor, -(2**31) + 1)),
        ("0.down.weight", lambda tensor: np.full_like(tensor, -128)),  # no level of the grid
        ("head.scale", lambda tensor: np.full_like(tensor, np.nan)),
        ("1.mlp_norm.gain", lambda tensor: np.full_like(tensor, 2**25)),
        ("head.weight", lambda tensor: tensor[1:]),
        ("0.activation.table", lambda tensor: tensor.astype(np.int16)),
    ],
)
def test_tensors_out_of_bounds_are_refused(integer_model: MakeModel, name: str, change: Callable) -> None:
    model = integer_model("flat")
    check_tensors(model.sizes, model.tensors)
    with pytest.raises(ValueError, match=name.split(".bias")[0]):
        check_tensors(model.sizes, model.tensors | {name: change(model.tensors[name])})


def test_sizes_out_of_bounds_are_refused(integer_model: MakeModel) -> None:
    model = integer_model("flat")
    for change in ({"hidden_size": 4096}, {"bos_token_id": 10**6}, {"context": 1}, {"norm_epsilon": 0}):
        with pytest.raises(ValueError):
            check_tensors(replace(model.sizes, **change), model.tensors)


def test_weights_that_are_not_finite_are_refused(float_model: MakeFloat, integer_model: MakeModel) -> None:
    tokenizer = integer_model("flat").tokenizer
    model = float_model("flat", len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        build_integer_model(model, tokenizer, TEXTS)


def test_a_call_that_cut_a_text_changes_no_codec(float_model: MakeFloat, integer_model: MakeModel) -> None:
    tokenizer = copy.deepcopy(integer_model("flat").tokenizer)
    model = float_model("flat", len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    before = build_integer_model(model, tokenizer, TEXTS)
    tokenizer(TEXTS[0], truncation=True, max_length=3)
    assert build_integer_model(model, tokenizer, TEXTS).id == before.id


def test_the_id_names_weights_tokenizer_and_sizes(integer_model: MakeModel) -> None:
    model = integer_model("flat")

    def changed(sizes=model.sizes, tokenizer_json=model._tokenizer_json, **tensors) -> str:  # noqa: ANN001
        return IntegerModel(sizes, model.tensors | tensors, model.tokenizer, tokenizer_json).id

    scale = model.tensors["head.scale"].copy()
    scale[0] *= 2
    ids = {
        changed(),
        changed(**{"head.scale": scale}),
        changed(sizes=replace(model.sizes, norm_epsilon=model.sizes.norm_epsilon + 1)),
        changed(tokenizer_json=model._tokenizer_json + " "),
    }
    assert model.id in ids and len(ids) == 4
