"""Rows for the estimators: token ids with their mask, and where each token stands in its text's UTF-8 bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_eem.data.documents import check_encodable
from modeling_eem.data.tokenizer import encode_text, is_byte_level, token_byte_lengths, token_bytes


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of rows as the caller gave them, or texts padded on the right.

    Attributes:
        ids, attention_mask: `[B, T]`.
        texts, offsets: see `TokenEntropies`.
    """

    ids: Tensor
    attention_mask: Tensor
    texts: tuple[bytes, ...] | None = None
    offsets: Tensor | None = None

    def real(self) -> list[Tensor]:
        """The real tokens of each row, `[t]` each."""
        return [ids_T[mask_T] for ids_T, mask_T in zip(self.ids, self.attention_mask)]

    def place(self, values: Sequence[Tensor]) -> Tensor:
        """One value a real token, put back where the tokens are, `[B, T]`; NaN elsewhere."""
        placed_BT = torch.full(self.ids.shape, float("nan"), dtype=torch.float64)
        placed_BT[self.attention_mask] = torch.cat([row.to("cpu", torch.float64) for row in values])
        return placed_BT


def rows_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Whole texts, each behind BOS where the tokenizer has one, padded on the right.

    Raises:
        ValueError: no text, an empty text, a text with a lone surrogate.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError("texts must be a list with at least one text.")
    encoded = []
    for number, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {number} is empty: leave it out.")
        ids, offsets_TX = encode_with_offsets(tokenizer, text)
        if tokenizer.bos_token_id is not None:
            ids, offsets_TX = [tokenizer.bos_token_id, *ids], torch.cat([torch.zeros(1, 2).long(), offsets_TX])
        encoded.append((torch.tensor(ids), offsets_TX))
    lengths_B = torch.tensor([len(ids_T) for ids_T, _ in encoded])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids_BT = torch.full(mask_BT.shape, filler)
    ids_BT[mask_BT] = torch.cat([ids_T for ids_T, _ in encoded])
    offsets_BTX = torch.zeros(*mask_BT.shape, 2, dtype=torch.long)
    offsets_BTX[mask_BT] = torch.cat([offsets_TX for _, offsets_TX in encoded])
    return Rows(ids_BT, mask_BT, tuple(text.encode() for text in texts), offsets_BTX)


def rows_of_ids(
    input_ids: Tensor, attention_mask: Tensor | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Rows:
    """Rows of ids, padded on either side; with a byte-level tokenizer also their bytes.

    Raises:
        ValueError: shapes that are no batch of rows, a row without tokens, a mask with holes, a tokenizer that does
            not tell the bytes of its tokens.
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
    rows = Rows(input_ids.cpu(), mask_BT)
    return rows if tokenizer is None else _with_bytes(rows, tokenizer)


def _with_bytes(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows:
    lengths_V = token_byte_lengths(tokenizer)
    lowest, highest = rows.ids[rows.attention_mask].aminmax()
    if lowest < 0 or highest >= len(lengths_V):
        raise ValueError(
            f"input_ids hold {lowest if lowest < 0 else highest}, and the tokenizer has {len(lengths_V):,} tokens: "
            "these are not its ids."
        )
    texts, offsets_BTX = [], torch.zeros(*rows.ids.shape, 2, dtype=torch.long)
    for row_number, (ids_T, mask_T) in enumerate(zip(rows.ids, rows.attention_mask)):
        real_T = ids_T[mask_T]
        ends_T = lengths_V[real_T].cumsum(0)
        offsets_BTX[row_number, mask_T] = torch.stack([ends_T - lengths_V[real_T], ends_T], dim=-1)
        texts.append(b"".join(token_bytes(tokenizer, real_T[lengths_V[real_T] > 0].tolist())))
    return Rows(rows.ids, rows.attention_mask, tuple(texts), offsets_BTX)


def encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], Tensor]:
    """A text's ids without special tokens, and the first and last-plus-one byte of each, `[t, 2]`.

    Byte-level tokenizers are exact, also where a token holds a part of a character. Others tell characters; a token
    that spans none of them (a word-boundary sign, say) spans no byte.

    Raises:
        ValueError: for a lone surrogate, or a tokenizer without offsets that is not byte-level.
    """
    if is_byte_level(tokenizer):
        ids = encode_text(tokenizer, text)
        lengths_T = token_byte_lengths(tokenizer)[ids]
        ends_T = lengths_T.cumsum(0)
        if int(lengths_T.sum()) == len(text.encode()):
            return ids, torch.stack([ends_T - lengths_T, ends_T], dim=-1)
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not tell where its tokens stand: use a fast tokenizer.")
    check_encodable(text, "the text")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    characters = [0, *torch.tensor([len(character.encode()) for character in text]).cumsum(0).tolist()]
    spans = [(characters[start], characters[end]) for start, end in encoding["offset_mapping"]]
    return encoding["input_ids"], torch.tensor(spans, dtype=torch.long).reshape(-1, 2)


def check_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot be the model's.

    Raises:
        ValueError: for more tokens than the model has, or another BOS than the model was made with. A tokenizer
            without BOS may be any model's: some configs name one that their tokenizer does not use.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {config.vocab_size:,}: it is not the model's."
        )
    if None not in (config.bos_token_id, tokenizer.bos_token_id) and tokenizer.bos_token_id != config.bos_token_id:
        raise ValueError(
            f"the tokenizer's BOS is {tokenizer.bos_token_id} and the model's {config.bos_token_id}: it is not the "
            "model's tokenizer."
        )
