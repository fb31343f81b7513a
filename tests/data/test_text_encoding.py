"""Long texts in pieces give the ids of the whole, whatever the tokenizer; a text that is altered is refused."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_eem.data import encode_text, text_encoding
from modeling_eem.data.text_encoding import AlteredTextError, TextEncoder

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PARTS = [
    "the",
    " sea",
    "  whale",
    "\n",
    "\n\n",
    "é",
    " 日本",
    "。",
    " 12",
    "'s",
    " x",
    "!",
    " (",
    "\t",
    "\r\n",
    "½",
    " É",
    "a" * 40,
]


def make_tokenizer(split: pre_tokenizers.PreTokenizer | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    backend.pre_tokenizer = to_bytes if split is None else pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([random_text(random.Random(1), 3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def random_text(generator: random.Random, num_parts: int) -> str:
    return "".join(generator.choice(PARTS) for _ in range(num_parts))


@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama3"])
def test_pieces_give_the_ids_of_the_whole_text(
    kind: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = pre_tokenizers.Split(Regex(LLAMA), behavior="isolated") if kind == "llama3" else None
    used = tokenizer if kind == "ours" else make_tokenizer(split)
    encoder = TextEncoder(used)
    assert encoder._can_cut
    monkeypatch.setattr(text_encoding, "PIECE_LENGTH", 7)
    for seed in range(150):
        text = random_text(random.Random(seed), 150)
        pieces = list(encoder._pieces(text))
        assert "".join(pieces) == text and len(pieces) >= 2
        whole = encode_text(used, text)
        assert encoder.encode(text).tolist() == whole
        first = encoder.encode(text, at_most=5).tolist()
        assert 5 <= len(first) < len(whole) and first == whole[: len(first)]


def test_a_tokenizer_that_splits_nowhere_encodes_texts_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make_tokenizer(None).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend))
    monkeypatch.setattr(text_encoding, "PIECE_LENGTH", 7)
    assert list(encoder._pieces("the sea the sea")) == ["the sea the sea"]


def test_an_added_token_with_a_blank_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.add_tokens(["the sea"])
    monkeypatch.setattr(text_encoding, "PIECE_LENGTH", 7)
    assert TextEncoder(tokenizer).encode("the sea the sea").tolist() == encode_text(tokenizer, "the sea the sea")


@pytest.mark.parametrize(
    "normalizer, text",
    [
        (normalizers.Lowercase(), "The Sea"),
        (normalizers.NFC(), "e\u0301"),
        (normalizers.Replace("sea", "tea"), "the sea"),
        (normalizers.Prepend(" "), "sea"),
    ],
)
def test_a_text_that_a_tokenizer_alters_is_refused(normalizer: normalizers.Normalizer, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")
    tokenizer.backend_tokenizer.normalizer = normalizer
    encoder = TextEncoder(tokenizer)
    assert encoder.encode("x" if "Prepend" not in repr(normalizer) else "").dtype == "int32"
    with pytest.raises(AlteredTextError, match="alters the text"):
        encoder.encode(text)


def test_no_text_has_no_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert TextEncoder(tokenizer).encode("").tolist() == []


_MEMORY = """
import resource, sys
from transformers import AutoTokenizer
from modeling_eem.data.text_encoding import TextEncoder
encoder, peaks = TextEncoder(AutoTokenizer.from_pretrained(sys.argv[1])), []
text = "The sea was calm, and the 12 whales of Captain Ahab slept.\\n" * (10**7 // 59)
for size, at_most in ((1000, None), (10**7, 511), (10**7, None)):
    encoder.encode(text[:size], at_most)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""


def test_memory_is_a_few_times_the_document(tokenizer_folder: Path) -> None:
    """Encoded at one time, ten megabytes take more than a gigabyte."""
    command = [sys.executable, "-c", _MEMORY, str(tokenizer_folder)]
    before, of_a_row, of_all = map(int, subprocess.check_output(command, text=True).split())
    assert of_a_row - before < 60
    assert of_all - before < 20 * 10
