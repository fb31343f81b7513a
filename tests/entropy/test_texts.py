"""Rows for the estimators: ids, masks, and the UTF-8 bytes that tokens hold."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem.data.tokenizer import encode_text, token_bytes, train_tokenizer
from modeling_eem.entropy.texts import check_tokenizer, encode_with_offsets, rows_of_ids, rows_of_texts

TEXTS = ["the naïve whale 😀 <|endoftext|>", "日本", " \n"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["the whale, the naïve whale 😀"] * 3, 268)


def test_offsets_are_the_bytes_of_each_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where a token holds a part of a character; a special token's name is text."""
    for text in TEXTS:
        ids, offsets = encode_with_offsets(tokenizer, text)
        assert ids == encode_text(tokenizer, text)
        assert [text.encode()[start:end] for start, end in offsets.tolist()] == token_bytes(tokenizer, ids)


def test_offsets_of_a_tokenizer_that_tells_characters() -> None:
    """Bytes, not characters; tokens that hold a byte of a character each share all of its bytes."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "é", "t"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.ByteFallback()
    characters = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    ids, offsets = encode_with_offsets(characters, "é t€")
    assert characters.convert_ids_to_tokens(ids) == ["▁", "é", "▁", "t", "<0xE2>", "<0x82>", "<0xAC>"]
    assert offsets[1:].tolist() == [[0, 2], [2, 3], [3, 4], [4, 7], [4, 7], [4, 7]]
    with pytest.raises(ValueError, match="the text holds the lone surrogate"):
        encode_with_offsets(characters, "a\ud800")


def test_a_byte_level_tokenizer_that_changes_the_text_falls_back_on_characters() -> None:
    """A normalizer may make a text shorter or longer; the offsets are those of the text as it was given."""
    backend = Tokenizer(
        models.BPE(
            {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    nfc = PreTrainedTokenizerFast(tokenizer_object=backend)
    text = "e\u0301t"  # e, a combining accent, t: four bytes, of which NFC leaves three
    ids, offsets = encode_with_offsets(nfc, text)
    assert len(ids) == 3 and offsets[-1].tolist() == [3, 4] and offsets[0, 0] == 0


def test_rows_of_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of_texts(TEXTS, tokenizer)
    assert rows.texts == tuple(text.encode() for text in TEXTS)
    for text, ids, mask, offsets in zip(TEXTS, rows.ids, rows.attention_mask, rows.offsets):
        length = int(mask.sum())
        assert mask[:length].all() and ids[:length].tolist() == [0, *encode_text(tokenizer, text)]
        assert offsets[0].tolist() == [0, 0] and offsets[length - 1, 1] == len(text.encode())
        assert (offsets[length:] == 0).all() and (ids[length:] == 1).all()
    for texts, message in [
        ([], "at least one text"),
        ("text", "must be a list"),
        (["a", ""], "text 1 is empty"),
        (["a\ud800"], "lone surrogate"),
    ]:
        with pytest.raises(ValueError, match=message):
            rows_of_texts(texts, tokenizer)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_tell_the_bytes_that_texts_do(side: str, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of_texts(TEXTS, tokenizer)
    flip = (lambda x: x.flip(1)) if side == "left" else (lambda x: x)
    ids, mask = rows.ids.clone(), rows.attention_mask
    if side == "left":
        for row in range(len(ids)):
            ids[row] = ids[row].roll(int((~mask[row]).sum()))
    again = rows_of_ids(ids, flip(mask).long(), tokenizer)
    assert again.texts == rows.texts
    for row in range(len(ids)):
        assert torch.equal(again.offsets[row, again.attention_mask[row]], rows.offsets[row, mask[row]])
    assert all(torch.equal(*pair) for pair in zip(again.real(), rows.real()))
    values = [torch.arange(len(real)).double() for real in again.real()]
    placed = again.place(values)
    assert placed[~again.attention_mask].isnan().all()
    assert torch.equal(placed[again.attention_mask], torch.cat(values))


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        (torch.zeros(2, 3).long(), torch.tensor([[1, 1, 1], [0, 0, 0]]), "row 1 is all padding"),
        (torch.zeros(1, 3).long(), torch.tensor([[1, 0, 1]]), "attention_mask has holes"),
        (torch.zeros(1, 4).long(), torch.tensor([[0, 1, 0, 1]]), "attention_mask has holes"),
        (torch.zeros(1, 3).long(), torch.tensor([[1, 1]]), r"attention_mask is \[1, 2\], input_ids are \[1, 3\]"),
        (torch.tensor([[0, 268]]), None, "input_ids hold 268, and the tokenizer has 268 tokens"),
        (torch.tensor([[0, -1]]), None, "input_ids hold -1"),
    ],
)
def test_rows_of_ids_that_are_none(
    ids: Tensor, mask: Tensor | None, message: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of_ids(ids, mask, tokenizer)


def test_a_tokenizer_that_is_not_the_models(tokenizer: PreTrainedTokenizerBase) -> None:
    check_tokenizer(LlamaConfig(vocab_size=300, bos_token_id=0), tokenizer)
    check_tokenizer(LlamaConfig(vocab_size=268, bos_token_id=None), tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has 268 tokens and the model 267"):
        check_tokenizer(LlamaConfig(vocab_size=267, bos_token_id=0), tokenizer)
    with pytest.raises(ValueError, match="the tokenizer's BOS is 0 and the model's 2"):
        check_tokenizer(LlamaConfig(vocab_size=268, bos_token_id=2), tokenizer)
