"""Values over bytes against a loop; the words' correction against all strings that a tiny model can write."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from modeling_eem.entropy import CausalEntropy
from modeling_eem.entropy.words import character_starts, spread_over_bytes, word_start_tokens, word_starts


def test_values_are_spread_as_a_loop_spreads_them() -> None:
    offsets = torch.tensor([[0, 0], [0, 3], [3, 3], [3, 4], [4, 4], [4, 9], [9, 9]])
    values = torch.rand(7, dtype=torch.float64)
    values[0] = math.nan
    expected = [0.0] * 9
    for value, (first, end) in zip(values.tolist()[1:], offsets.tolist()[1:]):
        for byte in range(first, end):
            expected[byte] += value / (end - first)
        if first == end:
            expected[min(first, 8)] += value
    np.testing.assert_allclose(spread_over_bytes(values, offsets, 9), expected, rtol=1e-14)


def test_a_byte_of_an_unscored_token_is_nan() -> None:
    spread = spread_over_bytes(torch.tensor([math.nan, 1.0]), torch.tensor([[0, 2], [2, 4]]), 4)
    np.testing.assert_array_equal(spread, [math.nan, math.nan, 0.5, 0.5])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two", ["one", " two"]),
        ("  one\n\ntwo \t", ["  one", "\n\ntwo \t"]),
        ("a\u00a0b c", ["a\u00a0b", " c"]),
        (" \n", [" \n"]),
        ("", []),
    ],
)
def test_words_are_delimited_by_whitespace(text: str, expected: list[str]) -> None:
    data = text.encode()
    starts = [*word_starts(data), len(data)]
    assert [data[a:b].decode() for a, b in itertools.pairwise(starts)] == expected


def test_a_pattern_of_ones_own() -> None:
    data = "«naïve», she said.".encode()
    starts = [*word_starts(data, r"\s*\w+|[^\w\s]"), len(data)]
    words = [data[a:b].decode() for a, b in itertools.pairwise(starts)]
    assert words == ["«", "naïve", "»", ",", " she", " said", "."]
    first = [*word_starts(b"..one two", r"\w+"), 9]
    assert [b"..one two"[a:b] for a, b in itertools.pairwise(first)] == [b"..one ", b"two"]


def test_cut_characters_stand_by_themselves() -> None:
    assert character_starts("é€".encode()[1:-1]).tolist() == [0, 1, 2]


def test_word_starts_of_the_shipped_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    starts_V = word_start_tokens(tokenizer, 8001)
    assert starts_V.shape == (8001,) and starts_V[tokenizer.eos_token_id] and not starts_V[tokenizer.pad_token_id]
    for index in (*range(2, 300), 5000, 7999):
        assert starts_V[index] == (tokenizer.decode([index])[0] in " \t\n\r\v\f"), tokenizer.decode([index])
    assert not starts_V[8000]
    with pytest.raises(ValueError, match="8,000 tokens, more than the model's 100"):
        word_start_tokens(tokenizer, 100)


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A tokenizer of a, b, a space, a space with a, and EOS; and a model of it."""
    vocabulary = {"</s>": 0, "a": 1, "b": 2, "Ġ": 3, "Ġa": 4}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=1.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def _probability(model: PreTrainedModel, context: list[int], tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([[*context, *tokens]])
    with torch.no_grad():
        log_p = model(ids).logits[0].double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(tokens) - 1)
    return math.exp(sum(log_p[place, token].item() for place, token in zip(places, tokens)))


def _continuations(length: int) -> Iterator[tuple[int, ...]]:
    return itertools.product(range(5), repeat=length)


def test_corrected_words_have_the_probability_of_all_that_begins_with_them(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = tiny
    starts_V = word_start_tokens(tokenizer)
    assert starts_V.tolist() == [True, False, False, True, True]
    estimator = CausalEntropy(model, word_starts=starts_V)
    entropies = estimator(["ab ab b"], tokenizer)
    assert entropies.ids.tolist() == [[0, 1, 2, 4, 2, 3, 2]]
    words = entropies.words(corrected=True)
    assert words["word"].tolist() == ["ab", "ab", "b"]

    word_tokens, context = [(1, 2), (4, 2), (3, 2)], [0]
    for number, (tokens, nats) in enumerate(zip(word_tokens, words["entropy_nats"])):
        of_the_word = any_word = 0.0
        for tail in _continuations(len(tokens) + 1):
            p = _probability(model, context, tail)
            any_word += p if number == 0 or starts_V[tail[0]] else 0.0
            of_the_word += p if tail[:-1] == tokens and starts_V[tail[-1]] else 0.0
        assert nats == pytest.approx(-math.log(of_the_word / any_word), abs=1e-5)
        context += tokens

    telescoped = entropies.totals() + entropies.boundary_nats[:, -1]
    assert words["entropy_nats"].sum() == pytest.approx(telescoped.item(), abs=1e-12)
    plain = entropies.words()["entropy_nats"]
    assert plain.sum() == pytest.approx(entropies.totals().item()) and (plain - words["entropy_nats"]).abs().min() > 0


def test_what_cannot_be_corrected_is_refused(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = tiny
    with pytest.raises(ValueError, match=r"need CausalEntropy\(model, word_starts"):
        CausalEntropy(model)(["ab ab"], tokenizer).words(corrected=True)
    estimator = CausalEntropy(model, word_starts=word_start_tokens(tokenizer))
    with pytest.raises(ValueError, match="token 2 is a special token"):
        estimator(input_ids=torch.tensor([[0, 1, 0, 2]]), tokenizer=tokenizer).words(corrected=True)
    with pytest.raises(ValueError, match="delimited by whitespace"):
        estimator(["ab ab"], tokenizer).words(corrected=True, pattern=r"\w")
