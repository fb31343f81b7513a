"""Unpadded rows for the estimators, and each token's place in its text's UTF-8 bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_eem.data.documents import check_encodable
from modeling_eem.data.tokenizer import encode_texts, is_byte_level, token_byte_lengths, token_bytes


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of real tokens without padding, `ids [t]` each."""

    ids: list[Tensor]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class TextRows(Rows):
    """Rows whose text is known.

    Attributes:
        texts: the UTF-8 bytes of each row.
        offsets: for each row `[t, 2]`, first and last-plus-one byte of each token in its text; special tokens span
            nothing.
    """

    texts: tuple[bytes, ...]
    offsets: list[Tensor]


def rows_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TextRows:
    """Whole texts, each after BOS if the tokenizer has one.

    Raises:
        ValueError: for no text, an empty text, or a text with a lone surrogate.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("texts must be a list with at least one text.")
    for number, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {number} is empty: leave it out.")
        check_encodable(text, f"text {number}")
    ids, offsets = [], []
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text_ids, spans_TX in encode_with_offsets(tokenizer, texts):
        ids.append(torch.tensor(bos + text_ids))
        offsets.append(F.pad(spans_TX, (0, 0, len(bos), 0)))
    return TextRows(ids, tuple(text.encode() for text in texts), offsets)


def rows_of_ids(ids: Sequence[Tensor], tokenizer: PreTrainedTokenizerBase) -> TextRows:
    """Rows of ids `[t]` with the bytes that a byte-level tokenizer's tokens hold.

    Raises:
        ValueError: for ids that are not the tokenizer's, or a tokenizer that is not byte-level.
    """
    lengths_V = token_byte_lengths(tokenizer)
    texts, offsets = [], []
    for ids_T in ids:
        lowest, highest = ids_T.aminmax()
        if lowest < 0 or highest >= len(lengths_V):
            foreign = lowest if lowest < 0 else highest
            raise ValueError(
                f"input_ids hold {foreign}, and the tokenizer has {len(lengths_V):,} tokens: these are not its ids."
            )
        lengths_T = lengths_V[ids_T]
        offsets.append(_spans(lengths_T))
        texts.append(_text_of(tokenizer, ids_T, lengths_T))
    return TextRows(list(ids), tuple(texts), offsets)


def real_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The real tokens `[t]` of each row of `input_ids` `[B, T]`, padded on either side, and their mask.

    Raises:
        ValueError: for shapes that are not a batch of rows, a row without tokens, or a mask with holes.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids must be [batch, tokens] with at least one token, not {list(input_ids.shape)}.")
    mask_BT = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask_BT.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {list(mask_BT.shape)}, input_ids are {list(input_ids.shape)}.")
    mask_BT = mask_BT.bool().cpu()
    if (empty := (mask_BT.sum(-1) == 0).nonzero()).numel():
        raise ValueError(f"row {empty[0].item()} is all padding: leave it out of the batch.")
    if (F.pad(mask_BT, (1, 0)).int().diff(dim=-1) == 1).sum(-1).max() > 1:
        raise ValueError("attention_mask has holes: mask only the tokens at either end of a row.")
    return [ids_T[mask_T] for ids_T, mask_T in zip(input_ids.cpu(), mask_BT)], mask_BT


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[tuple[list[int], Tensor]]:
    """Each text's ids without special tokens, and the first and last-plus-one byte of each, `[t, 2]`.

    Byte-level tokenizers are exact, also if a token holds part of a character. Other tokenizers give the offsets of
    characters, as do byte-level ones for a text that they alter; a token that spans no character (such as a
    word-boundary sign) spans no byte. Texts must hold no lone surrogate.

    Raises:
        ValueError: for a tokenizer without offsets that is not byte-level.
    """
    if not is_byte_level(tokenizer):
        return [_encode_by_characters(tokenizer, text) for text in texts]
    lengths_V = token_byte_lengths(tokenizer)
    encoded = []
    for text, ids in zip(texts, encode_texts(tokenizer, texts)):
        ids_T = torch.tensor(ids, dtype=torch.long)
        if _text_of(tokenizer, ids_T, lengths_V[ids_T]) == text.encode():
            encoded.append((ids, _spans(lengths_V[ids_T])))
        else:
            encoded.append(_encode_by_characters(tokenizer, text))
    return encoded


def _encode_by_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], Tensor]:
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not give its tokens' offsets: use a fast tokenizer.")
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    characters = [0, *torch.tensor([len(character.encode()) for character in text]).cumsum(0).tolist()]
    spans = [(characters[start], characters[end]) for start, end in encoding["offset_mapping"]]
    return encoding["input_ids"], torch.tensor(spans, dtype=torch.long).reshape(-1, 2)


def _text_of(tokenizer: PreTrainedTokenizerBase, ids_T: Tensor, lengths_T: Tensor) -> bytes:
    """The bytes of all tokens except special ones, whose length is 0."""
    return b"".join(token_bytes(tokenizer, ids_T[lengths_T > 0].tolist()))


def _spans(lengths_T: Tensor) -> Tensor:
    ends_T = lengths_T.cumsum(0)
    return torch.stack([ends_T - lengths_T, ends_T], dim=-1)
