"""Rows for the estimators: ids, masks, and the UTF-8 bytes that tokens hold."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem.data.tokenizer import encode_text, token_bytes, train_tokenizer
from modeling_eem.entropy import TokenEntropies
from modeling_eem.entropy.texts import encode_with_offsets, real_tokens, rows_of_ids, rows_of_texts

TEXTS = ["the naïve whale 😀 <|endoftext|>", "日本", " \n"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["the whale, the naïve whale 😀"] * 3, 268)


def test_offsets_are_the_bytes_of_each_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also where a token holds a part of a character; a special token's name is text."""
    for text, (ids, offsets) in zip(TEXTS, encode_with_offsets(tokenizer, TEXTS)):
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
    ((ids, offsets),) = encode_with_offsets(characters, ["é t€"])
    assert characters.convert_ids_to_tokens(ids) == ["▁", "é", "▁", "t", "<0xE2>", "<0x82>", "<0xAC>"]
    assert offsets[1:].tolist() == [[0, 2], [2, 3], [3, 4], [4, 7], [4, 7], [4, 7]]
    with pytest.raises(ValueError, match="text 0 holds the lone surrogate"):
        rows_of_texts(["a\ud800"], characters)


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
    ((ids, offsets),) = encode_with_offsets(nfc, [text])
    assert len(ids) == 3 and offsets[-1].tolist() == [3, 4] and offsets[0, 0] == 0


def test_rows_of_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of_texts(TEXTS, tokenizer)
    assert rows.texts == tuple(text.encode() for text in TEXTS)
    for text, ids, offsets in zip(TEXTS, rows.ids, rows.offsets):
        assert ids.tolist() == [0, *encode_text(tokenizer, text)]
        assert offsets[0].tolist() == [0, 0] and offsets[-1, 1] == len(text.encode())
    for texts, message in [
        ([], "at least one text"),
        ("text", "must be a list"),
        (["a", ""], "text 1 is empty"),
        (["a\ud800"], "lone surrogate"),
    ]:
        with pytest.raises(ValueError, match=message):
            rows_of_texts(texts, tokenizer)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_ids_tell_the_bytes_that_texts_do(
    side: str, tokenizer: PreTrainedTokenizerBase, pad_rows: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    rows = rows_of_texts(TEXTS, tokenizer)
    input_ids, mask = pad_rows(rows.ids, side, width=60)
    real, mask_BT = real_tokens(input_ids, mask)
    assert all(torch.equal(*pair) for pair in zip(real, rows.ids)) and torch.equal(mask_BT, mask.bool())
    again = rows_of_ids(real, tokenizer)
    assert again.texts == rows.texts
    assert all(torch.equal(*pair) for pair in zip(again.offsets, rows.offsets))
    values = [torch.arange(len(real)).double() for real in again.ids]
    placed = TokenEntropies.of_rows(again, values, "exact", layout=(input_ids, mask_BT))
    assert placed.values[~mask_BT].isnan().all() and torch.equal(placed.ids, input_ids)
    assert torch.equal(placed.values[mask_BT], torch.cat(values))
    assert torch.equal(placed.offsets[mask_BT], torch.cat(rows.offsets)) and (placed.offsets[~mask_BT] == 0).all()


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        (torch.zeros(2, 3).long(), torch.tensor([[1, 1, 1], [0, 0, 0]]), "row 1 is all padding"),
        (torch.zeros(1, 3).long(), torch.tensor([[1, 0, 1]]), "attention_mask has holes"),
        (torch.zeros(1, 4).long(), torch.tensor([[0, 1, 0, 1]]), "attention_mask has holes"),
        (torch.zeros(1, 3).long(), torch.tensor([[1, 1]]), r"attention_mask is \[1, 2\], input_ids are \[1, 3\]"),
    ],
)
def test_rows_of_ids_that_are_none(ids: Tensor, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        real_tokens(ids, mask)


def test_ids_of_another_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="input_ids hold 268, and the tokenizer has 268 tokens"):
        rows_of_ids([torch.tensor([0, 268])], tokenizer)
    with pytest.raises(ValueError, match="input_ids hold -1"):
        rows_of_ids([torch.tensor([0, -1])], tokenizer)


def test_a_tokenizer_that_alters_text_but_not_its_length() -> None:
    """Bytes are compared, not counted: of a lowercased text the offsets come from the characters."""
    backend = Tokenizer(
        models.BPE(
            {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("b", "")])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    lower = PreTrainedTokenizerFast(tokenizer_object=backend)
    # "İ" is two bytes and "i̇" three, and the b that is gone makes up for it.
    ((ids, offsets),) = encode_with_offsets(lower, ["İbc"])
    assert len(ids) == len("İbc".encode()) and offsets[-1].tolist() == [3, 4]


def test_the_vocabulary_is_read_once_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew where tokens were added since."""
    own = train_tokenizer(["the whale"], 260)
    reads: list[int] = []
    vocabulary = own.get_vocab()
    monkeypatch.setattr(type(own), "get_vocab", lambda self: reads.append(1) or vocabulary)
    for _ in range(3):
        rows_of_texts(["the whale", "a whale"], own)
    assert len(reads) == 1
    monkeypatch.undo()
    own.add_tokens(["whaling"])
    assert rows_of_texts(["whaling"], own).offsets[0].tolist() == [[0, 0], [0, 7]]


def test_a_special_tokens_name_in_text_is_text() -> None:
    """A tokenizer that tells characters, like one that tells bytes, must not read "</s>" in a page as an end."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "t"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.ByteFallback()
    characters = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    ((ids, offsets),) = encode_with_offsets(characters, ["t</s>t"])
    assert characters.eos_token_id not in ids
    assert len(ids) == 6 and offsets.tolist() == [[place, place + 1] for place in range(6)]
