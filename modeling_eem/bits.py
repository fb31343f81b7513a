"""Code lengths: nats, numbers and tokens turned into bits, and bits into bits per byte.

A window of text that an entropy estimation model encodes costs its code, its side information and the decoder's
cross-entropy over all tokens except BOS. Every window begins with BOS, which is free:

    bits(window) = Σ CE / ln 2  +  n_p · b_p  +  side information

for a code of `n_p` numbers stored in `b_p` bits each. A causal model is the case `n_p = 0`. Dividing by the UTF-8
bytes in the window's tokens (special tokens hold none) gives bits per byte, which can be compared with any compressor
of the same bytes. That is the honest count. The published shorthand (`published_bits_per_byte`, `code_offset_nats`,
`normalized_loss`) divides the code by `n` tokens even if a row holds fewer.

Source: Badger & Neligeorge, "Know Your Limits", 2025 (arXiv 2511.10618).
"""

import math
import operator
from dataclasses import asdict, astuple, dataclass


def nats_to_bits(nats: float) -> float:
    """Bits in `nats`: nats / ln 2. Differences of code lengths may be negative; ValueError for NaN and infinity."""
    if not math.isfinite(nats):
        raise ValueError(f"nats must be a finite number, not {nats}: leave unscored tokens out of the sum.")
    return nats / math.log(2)


def code_bits(num_values: int, bits_per_value: float, side_information_bits: float = 0.0) -> float:
    """Bits of one stored code: n_p · b_p, plus what its format stores beside the numbers, such as a scale.

    Raises:
        ValueError: for a negative or non-finite argument.
    """
    _check_not_negative(
        num_values=num_values, bits_per_value=bits_per_value, side_information_bits=side_information_bits
    )
    return num_values * bits_per_value + side_information_bits


def window_length_bits(num_tokens: int, max_tokens: int) -> float:
    """Bits that tell a decoder a window's length: one bit for whether it is full, and log2(n - 1) if it is not.

    It is decodable: Kraft's sum over the n lengths, `1/2 + (n - 1) · 1/2 · 1/(n - 1)`, is 1. Until version 0.1 a full
    window cost nothing and a shorter one log2 n. That sum is nearly 2: no decoder could distinguish the lengths.

    Count `num_tokens` and `max_tokens` (n) both with BOS, or both without.

    Raises:
        ValueError: if the window is empty or longer than `max_tokens`.
    """
    if not 1 <= num_tokens <= max_tokens:
        raise ValueError(f"num_tokens must be between 1 and max_tokens ({max_tokens}), not {num_tokens}.")
    if max_tokens == 1:
        return 0.0  # there is only one length
    return 1.0 if num_tokens == max_tokens else 1.0 + math.log2(max_tokens - 1)


def window_code_length(nll_nats: float, code_bits: float = 0.0, side_bits: float = 0.0) -> float:
    """Honest code length of a window in bits: Σ CE / ln 2 + code + side information.

    Args:
        nll_nats: the decoder's cross-entropy in nats, summed over all tokens of the window except BOS.
        code_bits: bits of the window's code, see `code_bits`; 0 for a causal model.
        side_bits: bits of everything else that the decoder must be told, see `window_length_bits`.

    Raises:
        ValueError: for a negative or non-finite argument.
    """
    _check_not_negative(nll_nats=nll_nats, code_bits=code_bits, side_bits=side_bits)
    return nats_to_bits(nll_nats) + code_bits + side_bits


def bits_per_byte(total_bits: float, total_bytes: int) -> float:
    """Bits per UTF-8 byte of the text that the bits encode.

    Raises:
        ValueError: for negative or non-finite bits, or no bytes.
    """
    _check_not_negative(total_bits=total_bits, total_bytes=total_bytes)
    if total_bytes == 0:
        raise ValueError("total_bytes is 0: bits per byte needs text; special tokens hold no bytes.")
    return total_bits / total_bytes


@dataclass(frozen=True)
class CodeLength:
    """The honest code length of one window, or of many: `sum(windows, CodeLength())`.

    Attributes:
        nll_nats: cross-entropy in nats, summed over the scored tokens.
        code_bits: bits of the codes.
        side_bits: bits of the side information.
        num_bytes: UTF-8 bytes that the tokens hold; special tokens hold none.
        num_tokens: scored tokens; BOS is never one.

    Raises:
        ValueError: for a negative or non-finite value.
    """

    nll_nats: float = 0.0
    code_bits: float = 0.0
    side_bits: float = 0.0
    num_bytes: int = 0
    num_tokens: int = 0

    def __post_init__(self) -> None:
        _check_not_negative(**asdict(self))

    def __add__(self, other: "CodeLength") -> "CodeLength":
        return CodeLength(*map(operator.add, astuple(self), astuple(other)))

    @property
    def total_bits(self) -> float:
        """Σ CE / ln 2 + code + side information, in bits."""
        return window_code_length(self.nll_nats, self.code_bits, self.side_bits)

    @property
    def bits_per_byte(self) -> float:
        """`total_bits` per byte of text; ValueError without text."""
        return bits_per_byte(self.total_bits, self.num_bytes)

    @property
    def cross_entropy(self) -> float:
        """Nats per scored token, without the code's bits; ValueError without tokens."""
        return self.nll_nats / self._scored_tokens()

    def _scored_tokens(self) -> int:
        if self.num_tokens == 0:
            raise ValueError("num_tokens is 0: a mean over tokens needs at least one scored token.")
        return self.num_tokens


def published_bits_per_byte(cross_entropy: float, tokens_per_byte: float) -> float:
    """The published shorthand: BPB = (L_t / L_b) · CE / ln 2, with one ratio of tokens to bytes for the whole text.

    Args:
        cross_entropy: nats per token; for a model with a code, its offset is already added (`normalized_loss`).
        tokens_per_byte: L_t / L_b, such as 1 / 3.92 for the 8,000-token tokenizer on FineWeb-Edu.

    Raises:
        ValueError: for a negative or non-finite argument, or no tokens per byte.
    """
    _check_not_negative(cross_entropy=cross_entropy, tokens_per_byte=tokens_per_byte)
    if tokens_per_byte == 0:
        raise ValueError("tokens_per_byte must be greater than 0.")
    return tokens_per_byte * nats_to_bits(cross_entropy)


def code_offset_nats(num_values: int, bits_per_value: float, max_tokens: int) -> float:
    """The code's cost in nats per token as published: n_p · b_p · ln 2 / n.

    It is too kind to padded rows, because it spreads the code over all `max_tokens` (n) positions of a row.

    Raises:
        ValueError: for a negative or non-finite argument, or `max_tokens` below 1.
    """
    _check_not_negative(max_tokens=max_tokens)
    if max_tokens == 0:
        raise ValueError("max_tokens must be at least 1.")
    return code_bits(num_values, bits_per_value) * math.log(2) / max_tokens


def normalized_loss(cross_entropy: float, num_values: int, bits_per_value: float, max_tokens: int) -> float:
    """The published "normalized loss" in nats per token: CE + n_p · b_p · ln 2 / n.

    Raises:
        ValueError: as in `code_offset_nats`, and for a negative or non-finite cross-entropy.
    """
    _check_not_negative(cross_entropy=cross_entropy)
    return cross_entropy + code_offset_nats(num_values, bits_per_value, max_tokens)


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, not {value}.")
