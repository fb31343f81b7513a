"""The committed tokenizer, and one trained here."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_eem.data import train_tokenizer

COMMITTED = Path(__file__).parents[2] / "tokenizer"


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    return COMMITTED


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(COMMITTED)


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """English, code and the tokenizer's own special tokens, which training must not take for what they say."""
    return [f"The {word}'s {number} days\r\n\tof <|endoftext|>rain <|pad|>" for number, word in enumerate("abcdefgh")]


@pytest.fixture(scope="session")
def trained(corpus: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus, 280)
