"""Causal entropies against torch's cross-entropy and against minicons."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from minicons.scorer import IncrementalLMScorer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig
from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import CausalEntropy
from modeling_eem.entropy.texts import Rows

CONTEXT = 16
# A soft-capped head, and one with a bias: neither may be applied in chunks as a plain matrix.
OTHERS = {
    "gemma2": {"final_logit_softcapping": 1.0, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 64},
    "phi": {},
}


def test_a_right_aligned_mixer_in_a_batch(make_causal: Callable, make_rows: Callable) -> None:
    """Its last token has the last row of the mixing weights: padding must not take that place."""
    estimator = CausalEntropy(make_causal("masked_mixer", position_alignment="right"))
    rows = make_rows(4, 9, 6)
    for values, row in zip(estimator.measure(Rows(rows)), rows):
        torch.testing.assert_close(values, estimator.measure(Rows([row]))[0], rtol=0, atol=1e-4, equal_nan=True)


def test_word_starts_of_another_vocabulary_are_refused(make_causal: Callable) -> None:
    with pytest.raises(ValueError, match="word_starts has 30 values and the model's vocabulary 40"):
        CausalEntropy(make_causal("llama"), word_starts=torch.ones(30, dtype=torch.bool))


@pytest.fixture(params=["masked_mixer", "llama", "gpt2", "gemma2", "phi"])
def model(request: pytest.FixtureRequest, make_causal: Callable) -> PreTrainedModel:
    if request.param not in OTHERS:
        return make_causal(request.param)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 40, "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1}
    config = AutoConfig.for_model(
        request.param, **sizes, **tokens, eos_token_id=None, initializer_range=0.2, **OTHERS[request.param]
    )
    causal = AutoModelForCausalLM.from_config(config).eval()
    if request.param == "phi":
        torch.nn.init.normal_(causal.lm_head.bias)
    return causal


@torch.no_grad()
def cross_entropies(model: PreTrainedModel, row_T: Tensor) -> Tensor:
    """At each token but the first, from the model's whole logits."""
    logits = model(input_ids=row_T[None]).logits[0, :-1].double()
    return F.cross_entropy(logits, row_T[1:], reduction="none")


def test_equals_cross_entropy(model: PreTrainedModel, make_rows: Callable, pad_rows: Callable) -> None:
    rows = make_rows(CONTEXT, 2, 9)
    input_ids, mask = pad_rows(rows, "left", width=CONTEXT)
    result = CausalEntropy(model)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        assert values[0].isnan()
        torch.testing.assert_close(values[1:], cross_entropies(model, row), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 4, CONTEXT - 1])
def test_a_stride_scores_texts_of_any_length(stride: int, model: PreTrainedModel, make_rows: Callable) -> None:
    """Behind the row's first token and as much of the text before as fits."""
    (row,) = make_rows(37)
    values = CausalEntropy(model, stride=stride)(input_ids=row[None]).values[0]
    for j in range(1, len(row)):
        blocks = max(0, -(-(j - (CONTEXT - 1)) // stride))
        last = min(CONTEXT - 1 + blocks * stride, len(row) - 1)
        window = torch.cat([row[:1], row[max(last - (CONTEXT - 2), 1) : j + 1]])
        torch.testing.assert_close(values[j], cross_entropies(model, window)[-1], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stride", [None, 5])
def test_boundaries_are_the_chance_of_a_word_to_begin(
    stride: int | None, model: PreTrainedModel, make_rows: Callable
) -> None:
    """At every token, the first and the last too: -log of the summed probability of the tokens that begin a word."""
    word_starts = torch.arange(40) % 3 == 0
    rows = make_rows(CONTEXT, 6) if stride is None else make_rows(CONTEXT - 2, 6)
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(input_ids.shape[1]) < torch.tensor([[len(rows[0])], [6]])
    estimator = CausalEntropy(model, stride=stride, word_starts=word_starts)
    result = estimator(input_ids=input_ids, attention_mask=mask)
    for row, boundary_T in zip(rows, result.boundary_nats):
        probabilities = model(input_ids=row[None]).logits[0].double().softmax(-1)
        expected = -probabilities[:, word_starts].sum(-1).log()
        torch.testing.assert_close(boundary_T[: len(row)], expected, rtol=0, atol=1e-5)
        assert boundary_T[len(row) :].isnan().all()
    plain = CausalEntropy(model, stride=stride)(input_ids=input_ids, attention_mask=mask)
    assert plain.boundary_nats is None
    torch.testing.assert_close(result.values, plain.values, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("stride", [None, 5])
def test_predictions_beside_the_values(stride: int | None, model: PreTrainedModel, make_rows: Callable) -> None:
    """Rank and predictive entropy of each token, from the model's whole logits."""
    rows = make_rows(CONTEXT, 2, 9)
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(CONTEXT) < torch.tensor([[len(row)] for row in rows])
    result = CausalEntropy(model, stride=stride, with_predictions=True)(input_ids=input_ids, attention_mask=mask)
    plain = CausalEntropy(model, stride=stride)(input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(result.values, plain.values, equal_nan=True)
    assert plain.ranks is None and plain.predictive_nats is None and result.boundary_nats is None
    for number, row in enumerate(rows):
        logits = model(input_ids=row[None]).logits[0, :-1].double()
        log_p = logits.log_softmax(-1)
        entropies = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(result.predictive_nats[number, 1 : len(row)], entropies, rtol=0, atol=1e-5)
        ranks = 1 + (logits > logits.gather(1, row[1:, None])).sum(-1)
        assert result.ranks[number, 1 : len(row)].tolist() == ranks.tolist()
        assert result.ranks[number, 0].isnan() and result.predictive_nats[number, len(row) :].isnan().all()
    assert {"predictive_nats", "ranks"} <= set(result.to_pandas().columns)


def test_heads_run_only_where_something_is_scored(make_causal: Callable, make_rows: Callable) -> None:
    """Not at padding, nor at the tokens that a stride reads again."""
    model = make_causal("llama")
    estimator = CausalEntropy(model, stride=4)
    outputs: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: outputs.append(len(args[0])))
    rows = make_rows(CONTEXT, 3, 30)
    mask = torch.arange(30) < torch.tensor([[len(row)] for row in rows])
    estimator(input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), attention_mask=mask)
    windows = 1 + 1 + 1 + -(-(30 - CONTEXT) // 4)
    assert sum(outputs) == sum(len(row) - 1 for row in rows) + windows, "and one output at the end of each window"


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_models_that_see_later_tokens(model_type: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(model_type, **sizes, vocab_size=40, max_position_embeddings=CONTEXT)
    with pytest.raises(ValueError, match="sees later tokens"):
        CausalEntropy(AutoModelForCausalLM.from_config(config))


def test_agrees_with_minicons(tmp_path: Path, backbone_config: Callable) -> None:
    texts = ["The whale swam, and the ship followed.", "Call me Ishmael!", "é"]
    tokenizer = train_tokenizer(texts * 3, 270, model_max_length=64)
    config = backbone_config("gpt2", vocab_size=270, max_position_embeddings=64, bos_token_id=0, pad_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = IncrementalLMScorer(str(tmp_path), "cpu")
    theirs = scorer.token_score(texts, surprisal=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    ours = CausalEntropy(loaded)(texts, AutoTokenizer.from_pretrained(tmp_path))
    assert len(theirs) == 3
    for values, pairs in zip(ours.rows(), theirs):
        assert len(pairs) == len(values)  # theirs too begin with BOS, which they give 0
        torch.testing.assert_close(
            values[1:], torch.tensor([surprisal for _, surprisal in pairs[1:]]).double(), rtol=0, atol=1e-4
        )


def test_a_tokenizer_without_bos_leaves_the_first_token_unscored(make_causal: Callable) -> None:
    tokenizer = train_tokenizer(["some text"], 260)
    tokenizer.bos_token = None
    result = CausalEntropy(make_causal("llama", vocab_size=260))(["text"], tokenizer)
    assert tokenizer.decode(result.ids[0]) == "text"
    assert result.values[0, 0].isnan() and result.values[0, 1:].isfinite().all()


@pytest.mark.parametrize("model_type", ["bloom", "mamba"])
def test_models_without_a_limit_read_texts_of_any_length(model_type: str, make_rows: Callable) -> None:
    config = AutoConfig.for_model(model_type, vocab_size=40, hidden_size=32, num_hidden_layers=1, bos_token_id=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = make_rows(70, 9)
    mask = torch.arange(70) < torch.tensor([[70], [9]])
    result = CausalEntropy(model)(
        input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), attention_mask=mask
    )
    for row, values in zip(rows, result.rows()):
        torch.testing.assert_close(values[1:], cross_entropies(model, row), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=f"a '{model_type}' model reads texts of any length: leave stride out"):
        CausalEntropy(model, stride=4)


def test_models_that_see_what_they_score(make_eem: Callable, backbone_config: Callable) -> None:
    with pytest.raises(ValueError, match="CausalEntropy needs a causal language model, not 'eem'.*ExactEntropy"):
        CausalEntropy(make_eem())
    config = EEMAutoencoderConfig(encoder_config=backbone_config(), decoder_config=backbone_config())
    with pytest.raises(ValueError, match="not 'eem_autoencoder'"):
        CausalEntropy(EEMAutoencoder(config))


@pytest.mark.parametrize("stride", [0, CONTEXT])
def test_strides_that_skip_text(stride: int, make_causal: Callable) -> None:
    with pytest.raises(ValueError, match="stride must lie in 1 … 15"):
        CausalEntropy(make_causal("llama"), stride=stride)
