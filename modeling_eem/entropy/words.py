"""Token values over a text's bytes, characters and words, and the correction that word probabilities need.

Everything is in UTF-8 bytes: a token's value is spread evenly over its bytes. However you cut the text, the sum over
the pieces is the sum over the tokens. Tensor names end in their shape: T tokens, X first and last-plus-one byte, V
vocabulary; N bytes, W words in numpy arrays.
"""

import re

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_eem.data.tokenizer import bos_and_eos, token_byte_lengths, token_bytes

ASCII_WHITESPACE = " \t\n\r\v\f"
WHITESPACE_WORDS = f"[{ASCII_WHITESPACE}]*[^{ASCII_WHITESPACE}]+"


def spread_over_bytes(values_T: Tensor, offsets_TX: Tensor, num_bytes: int) -> np.ndarray:
    """A row's values over its text's bytes, `[N]`: `Σ_t value_t / bytes_t` over the tokens that hold a byte.

    A byte of a token that was not scored is NaN. A token without bytes (EOS, a word-boundary sign) adds its value to
    the byte that follows it, or to the last one; it adds nothing if it was not scored.
    """
    values, (first, end) = values_T.double().numpy(), offsets_TX.numpy().T
    bytes_N = np.zeros(num_bytes)
    if num_bytes == 0:
        return bytes_N
    lengths = end - first
    holders = np.repeat(np.arange(len(values)), lengths)
    within = np.arange(len(holders)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    np.add.at(bytes_N, first[holders] + within, values[holders] / lengths[holders])
    bare = (lengths == 0) & ~np.isnan(values)
    np.add.at(bytes_N, np.minimum(first[bare], num_bytes - 1), values[bare])
    return bytes_N


def character_starts(text: bytes) -> np.ndarray:
    """The first byte of each character; if an end of the text cuts a character, each of its bytes counts as one."""
    decoded = text.decode("utf-8", "surrogateescape")
    widths = [len(character.encode("utf-8", "surrogateescape")) for character in decoded]
    return np.cumsum([0, *widths])[:-1]


def word_starts(text: bytes, pattern: str = WHITESPACE_WORDS) -> np.ndarray:
    """The first byte of each word; a word lasts until the next one, and the first begins with the text.

    Args:
        pattern: a word begins wherever this regular expression matches. By default words are delimited by ASCII
            whitespace, which belongs to the word after it, and at the text's end to the last word. A no-break space
            joins words, as it is meant to.
    """
    decoded = text.decode("utf-8", "surrogateescape")
    found = [match.start() for match in re.finditer(pattern, decoded) if match.start() < len(decoded)]
    found[:1] = [0] if decoded else []
    return character_starts(text)[found]


def sum_between(bytes_N: np.ndarray, starts_W: np.ndarray) -> np.ndarray:
    """The sums of the bytes from each start to the next, `[W]`; NaN if one of the bytes is NaN."""
    return np.add.reduceat(bytes_N, starts_W) if len(starts_W) else np.zeros(0)


def word_boundary_corrections(
    boundary_T: Tensor, offsets_TX: Tensor, starts_W: np.ndarray, num_bytes: int
) -> np.ndarray:
    """Corrections from the nats of words' tokens to the nats of words, `[W]`: `B(after) - B(before)`.

    `B(t) = -log P(the next token begins a word)` at token t. A byte-level tokenizer writes the space before a word
    into the word's first token. The word's tokens then also tell that the previous word has ended, and do not tell
    that this word has: `-log p(w) = Σ nats - B(before its first token) + B(after its last token)`. A text certainly
    begins with a word, so there `B = 0`; a row's corrections add up to B at its last token. Words that share a token
    are NaN.

    Source: Pimentel & Meister 2024, arXiv 2406.14561; Oh & Schuler 2024, arXiv 2406.10851.

    Args:
        boundary_T: B at the row's real tokens.
        starts_W: from `word_starts`, words delimited by whitespace.

    Raises:
        ValueError: for a special token after the first token: no word begins or ends with it.
    """
    boundary, (first, end) = boundary_T.double().numpy(), offsets_TX.numpy().T
    if (first == end)[1:].any():
        place = 1 + (first == end)[1:].argmax().item()
        raise ValueError(f"corrected words need rows of text: token {place} is a special token inside a row.")
    # B by the byte where a token ends; NaN unless a token, or the end of the text, begins there.
    after_byte = np.full(num_bytes + 1, np.nan)
    after_byte[end] = boundary
    begins = np.zeros(num_bytes + 1, dtype=bool)
    begins[first], begins[num_bytes] = True, True
    after_byte[~begins] = np.nan
    ends_W = np.append(starts_W[1:], num_bytes)
    before_W = after_byte[starts_W]
    before_W[starts_W == 0] = 0.0
    return after_byte[ends_W] - before_W


def word_start_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None) -> Tensor:
    """The tokens that show that a word has ended: those that begin with ASCII whitespace, and EOS; `[V]`, bool.

    For `CausalEntropy(model, word_starts=…)`.

    Args:
        vocab_size: the model's number of tokens, if it is larger than the tokenizer's.

    Raises:
        ValueError: for a tokenizer that is not byte-level, or holds more tokens than `vocab_size`.
    """
    size = len(tokenizer) if vocab_size is None else vocab_size
    if size < len(tokenizer):
        raise ValueError(f"the tokenizer has {len(tokenizer):,} tokens, more than the model's {size:,}.")
    starts_V = torch.zeros(size, dtype=torch.bool)
    ids = token_byte_lengths(tokenizer).nonzero().flatten().tolist()
    for index, held in zip(ids, token_bytes(tokenizer, ids)):
        starts_V[index] = chr(held[0]) in ASCII_WHITESPACE
    _, eos = bos_and_eos(tokenizer)
    if eos is not None:
        starts_V[eos] = True
    return starts_V
