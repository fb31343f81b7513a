"""The tokenizer loses nothing: committed, freshly trained, saved and loaded again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_eem.data import TokenCounts, count_tokens, encode_text, token_byte_lengths, train_tokenizer
from modeling_eem.data.tokenizer import token_bytes

TEXTS = {
    "prose": "It's the 1st of May; don't they've  twice  paid £3.50 for it?",
    "emoji": "👍🏽👨‍👩‍👧‍👦 🇵🇹 ☺️",
    "line ends": "a\r\nb\n\nc\rd\r\n\r\n\n \n \t\n",
    "controls": "a\x00b\x00\x00\x1b[0m\x7f\x85\u2028\ufeffz",
    "spaces": "  two   three \u00a0\u3000\u200b    ",
    "only a space": " ",
    "lone combining marks": "\u0301 \u0301\u0301\u20dd a\u0301\u0327 \u0308",
    "not normalised": "é e\u0301 ﬁ ① Å \u212b",
    "scripts": "Ελληνικά русский עִבְרִית العَرَبِيَّة हिन्दी ไทย 日本語 한국어 ქართული 𐍈𝔘",
    "special tokens": "<|endoftext|><|pad|> <|endoftext|>s <|endoftext|\u0301>[PAD]</s>",
    "unassigned": "\ue000\U000e0041\U0010ffff\ufffe",
    "nothing": "",
}
LONG = {"spaces": " ", "letters": "a", "newlines": "\n"}
ALSO_LONG = {"marks": "\u0301", "emoji": "👍", "digits": "7", "words": " a"}
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module", params=["committed", "trained", "reloaded"])
def any_tokenizer(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    trained: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> PreTrainedTokenizerFast:
    if request.param != "reloaded":
        return {"committed": tokenizer, "trained": trained}[request.param]
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_comes_back(any_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = any_tokenizer(text)["input_ids"]
    assert any_tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids == [0, *encode_text(any_tokenizer, text)]
    assert not {0, 1} & set(ids[1:]), "text became a special token"
    assert any_tokenizer([text, "a" + text])["input_ids"][0] == ids, "a batch is encoded like a text"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_bytes_of_tokens(any_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = encode_text(any_tokenizer, text)
    assert b"".join(token_bytes(any_tokenizer, ids)) == text.encode()
    assert int(token_byte_lengths(any_tokenizer)[torch.tensor(ids, dtype=torch.long)].sum()) == len(text.encode())


def _assert_long_runs_come_back(tokenizer: PreTrainedTokenizerFast, unit: str, num_bytes: int) -> None:
    """Runs are cut at 16 or 32 characters, so their tokens are those of a short run, over and over."""
    text = unit * (num_bytes // len(unit.encode()) // 32 * 32)
    ids = encode_text(tokenizer, text)
    assert len(ids) == len(text) // 32 * len(encode_text(tokenizer, text[:32]))
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("unit", (LONG | ALSO_LONG).values(), ids=LONG | ALSO_LONG)
def test_a_mebibyte_of_one_thing(tokenizer: PreTrainedTokenizerFast, unit: str) -> None:
    _assert_long_runs_come_back(tokenizer, unit, MEBIBYTE)


@pytest.mark.parametrize("unit", (LONG | ALSO_LONG | {"signs": "!", "letter and mark": "e\u0301"}).values())
def test_runs_are_cut_before_the_merges(any_tokenizer: PreTrainedTokenizerFast, unit: str) -> None:
    """BPE's time grows faster than a piece's length; whether it does shows only in pieces of megabytes."""
    pieces = any_tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(unit * 100)
    assert max(end - start for _, (start, end) in pieces) <= 32


@pytest.mark.slow
@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_ten_megabytes_of_one_thing(tokenizer: PreTrainedTokenizerFast, unit: str) -> None:
    _assert_long_runs_come_back(tokenizer, unit, 10 * MEBIBYTE)


def test_special_tokens_and_bytes_come_first(any_tokenizer: PreTrainedTokenizerFast) -> None:
    assert any_tokenizer.bos_token_id == any_tokenizer.eos_token_id == 0 and any_tokenizer.bos_token == "<|endoftext|>"
    assert any_tokenizer.pad_token_id == 1 and any_tokenizer.pad_token == "<|pad|>"
    assert sorted(token_bytes(any_tokenizer, range(2, 258))) == [bytes([byte]) for byte in range(256)]
    lengths = token_byte_lengths(any_tokenizer)
    assert len(lengths) == len(any_tokenizer) and lengths[:2].tolist() == [0, 0]
    text_ids = range(2, len(any_tokenizer))
    assert lengths[2:].tolist() == [len(token) for token in token_bytes(any_tokenizer, text_ids)]
    assert token_bytes(any_tokenizer, [0, 1]) == [b"<|endoftext|>", b"<|pad|>"]


def test_the_committed_tokenizer_has_8000_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 8000 and max(tokenizer.get_vocab().values()) == 7999


def test_bos_by_default_eos_by_option(tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path) -> None:
    with_eos = AutoTokenizer.from_pretrained(tokenizer_folder, add_bos_token=True, add_eos_token=True)
    ids = tokenizer("the sea", add_special_tokens=False)["input_ids"]
    assert ids and 0 not in ids
    assert tokenizer("the sea")["input_ids"] == [0, *ids]
    assert with_eos("the sea")["input_ids"] == [0, *ids, 0]
    assert with_eos("")["input_ids"] == [0, 0]
    assert with_eos.decode(with_eos("a<|endoftext|>b")["input_ids"], skip_special_tokens=True) == "a<|endoftext|>b"
    assert encode_text(with_eos, "the sea") == ids


def test_padding_and_truncation(any_tokenizer: PreTrainedTokenizerFast) -> None:
    short, long = any_tokenizer(["a", "a b c d"])["input_ids"]
    left = any_tokenizer(["a", "a b c d"], padding=True)
    gap = len(long) - len(short)
    assert left["input_ids"] == [[1] * gap + short, long]
    assert left["attention_mask"] == [[0] * gap + [1] * len(short), [1] * len(long)]
    assert any_tokenizer(["a", "a b c d"], padding=True, padding_side="right")["input_ids"][0] == short + [1] * gap
    assert any_tokenizer("a b c d", truncation=True, max_length=3)["input_ids"] == long[:3]
    assert len(any_tokenizer("a " * 2000, truncation=True)["input_ids"]) == any_tokenizer.model_max_length == 1024


def test_training_is_deterministic_and_reads_texts_once(corpus: list[str], tmp_path: Path) -> None:
    files = []
    for name, texts in {"list": corpus, "stream": iter(corpus), "other": [t.upper() for t in corpus]}.items():
        trained = train_tokenizer(texts, 280)
        assert len(trained) == 280
        trained.save_pretrained(tmp_path / name)
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0] == files[1] != files[2]
    assert files[0].keys() >= {"tokenizer.json", "tokenizer_config.json"}


def test_merges_keep_the_space_before_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    assert token_bytes(tokenizer, encode_text(tokenizer, " the  the")) == [b" the", b" ", b" the"]


def test_documents_characters_bytes_and_tokens_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    counts = count_tokens(tokenizer, ["the sea", "", "é👍"])
    num_tokens = sum(len(encode_text(tokenizer, text)) for text in ("the sea", "é👍"))
    assert counts == TokenCounts(documents=3, characters=9, bytes=7 + 2 + 4, tokens=num_tokens)
    assert counts.characters_per_token == 9 / num_tokens and counts.bytes_per_token == 13 / num_tokens


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda _: train_tokenizer(["a b"], 257), "vocab_size must be at least 258.*not 257"),
        (lambda _: train_tokenizer(["a b"], 8000), "yields only [0-9]+ tokens: set vocab_size"),
        (lambda _: train_tokenizer([], 258), "no text"),
        (lambda _: train_tokenizer(["", ""], 258), "no text"),
        (
            lambda _: train_tokenizer(["a", "b\ud800"], 258),
            r"document 1 .* surrogate '\\ud800' at character 1",
        ),
        (lambda tokenizer: encode_text(tokenizer, "ab\udfff"), r"surrogate '\\udfff' at character 2"),
        (lambda tokenizer: count_tokens(tokenizer, ["a", "\ud800"]), "surrogate"),
        (lambda tokenizer: count_tokens(tokenizer, [""]), "no text"),
        (lambda tokenizer: token_bytes(tokenizer, [8000]), "8000"),
        (lambda tokenizer: token_bytes(tokenizer, [-1]), "-1"),
    ],
)
def test_texts_and_ids_without_meaning_are_refused(
    call: Callable[[PreTrainedTokenizerFast], object], message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


def _words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "sea": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _sentence_pieces() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({"▁the": 0, "é": 1}, []))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("make", [_words, _sentence_pieces])
def test_bytes_need_a_byte_level_tokenizer(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    for function in (token_byte_lengths, lambda tokenizer: token_bytes(tokenizer, [1])):
        with pytest.raises(ValueError, match="not a byte-level tokenizer"):
            function(make())


def test_added_tokens_hold_their_text(corpus: list[str]) -> None:
    tokenizer = train_tokenizer(corpus, 270)
    tokenizer.add_tokens(["日本", "of the"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|sep|>"]})
    ids = encode_text(tokenizer, "日本 of the")
    assert {270, 271} < set(ids)
    assert b"".join(token_bytes(tokenizer, ids)) == "日本 of the".encode()
    assert token_byte_lengths(tokenizer)[270:].tolist() == [6, 6, 0]
