"""The bytes of a byte-level tokenizer's tokens, from its `tokenizers` object alone: no PyTorch, no transformers."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from tokenizers import Tokenizer, pre_tokenizers

ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())


class NamedToken(Protocol):
    """An added token of tokenizers or transformers."""

    @property
    def content(self) -> str: ...


def is_byte_level(backend: Tokenizer) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet, one character of a token for each byte."""
    probe = "é €"
    (token, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(probe)
    return backend.decoder is not None and backend.decoder.decode([token]) == probe


def bytes_of_tokens(vocabulary: dict[str, int], added: Mapping[int, NamedToken]) -> dict[int, bytes]:
    """The bytes of each id; an added token's, special or not, are those of its name.

    Raises:
        ValueError: for a token that is not written in GPT-2's byte alphabet.
    """
    to_latin = _alphabet_to_latin()
    held = {}
    for token, index in vocabulary.items():
        if index in added:
            held[index] = added[index].content.encode()
        elif ALPHABET.issuperset(token):
            held[index] = token.translate(to_latin).encode("latin-1")
        else:
            raise ValueError(f"token {index}, {token!r}, is not written in GPT-2's byte alphabet.")
    return held


def _alphabet_to_latin() -> dict[int, str]:
    """GPT-2's character for each byte → the character with the byte's number. Printable bytes are their own character;
    the others have the characters from 256 on."""
    printable = {*_codes("!", "~"), *_codes("¡", "¬"), *_codes("®", "ÿ")}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {256 + place: chr(byte) for place, byte in enumerate(others)}


def _codes(first: str, last: str) -> Iterable[int]:
    return range(ord(first), ord(last) + 1)


__all__ = ["NamedToken", "bytes_of_tokens", "is_byte_level"]
