"""A byte-level BPE tokenizer that loses nothing, and the bytes that its tokens hold.

What is unusual:

* Runs of letters, digits, symbols and spaces are cut at a fixed length before the merges. On prose this changes
  nothing (GPT-2's unbounded split gives the same number of tokens). It is needed because BPE's time grows faster than
  a piece's length, and a text may be ten megabytes of one character.
* Text never becomes a special token: a literal `<|endoftext|>` is encoded as its characters. That is the saved default
  (`split_special_tokens`), so `decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text` for every text,
  also after `AutoTokenizer.from_pretrained`.
* BOS is added by default and EOS is not; they are one token. If you give transformers one of the two choices, it
  replaces both: ask for EOS with `from_pretrained(…, add_bos_token=True, add_eos_token=True)`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem import byte_level
from modeling_eem.byte_level import bytes_of_tokens
from modeling_eem.data.documents import check_encodable

END_OF_TEXT = "<|endoftext|>"  # BOS and EOS, id 0
PAD = "<|pad|>"  # id 1
MIN_VOCAB_SIZE = 2 + 256  # the special tokens and every byte

# GPT-2's split with bounded runs, and with marks kept beside their letters.
_SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)"
    r"| ?[\p{L}\p{M}]{1,32}"
    r"| ?\p{N}{1,16}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,16}"
    r"|\s{1,16}(?!\S)"  # leaves a word the space before it
    r"|\s{1,16}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 8000, model_max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Ids: `<|endoftext|>` (BOS and EOS) 0, `<|pad|>` 1, the 256 bytes 2 … 257, then the merges in their order.
    The texts are read once, one at a time. Source: Badger & Neligeorge 2025, set-up (8,000 tokens).

    Args:
        texts: the corpus.
        vocab_size: number of all tokens, special ones included; at least 258.
        model_max_length: tokens that `truncation=True` keeps if it is given no length.

    Raises:
        ValueError: for a vocabulary too small for the bytes or too large for the corpus, a corpus without text, or a
            text with a lone surrogate.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes, 2 special tokens), not {vocab_size}."
        )
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_encodable(texts), trainer)
    if (size := backend.get_vocab_size()) < vocab_size:
        raise ValueError(f"the corpus yields only {size} tokens: set vocab_size to {size} or give more text.")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        add_bos_token=True,
        add_eos_token=False,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=model_max_length,
    )


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a whole text: no special token is added or read from the text, and nothing is cut off.

    Raises:
        ValueError: for a lone surrogate.
    """
    check_encodable(text, "the text")
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`encode_text` of several texts without lone surrogates, in one call of the tokenizer."""
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The exact number of UTF-8 bytes that each token holds, `[vocab_size]`; special tokens hold 0.

    A byte-level token may hold part of a character, so this is not the length of the decoded token. Over the ids of a
    text the lengths sum to `len(text.encode())`.

    Raises:
        ValueError: unless the tokenizer is byte-level with GPT-2's alphabet (one character of a token = one byte).
    """
    return _token_table(tokenizer).byte_lengths_V.clone()


def token_bytes(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[bytes]:
    """The bytes of each token; a special token's are those of its name. Joined, a text's tokens are its UTF-8.

    Raises:
        ValueError: unless the tokenizer is byte-level with GPT-2's alphabet, and for ids outside its vocabulary.
    """
    held = _token_table(tokenizer).bytes_of
    try:
        return [held[int(index)] for index in ids]
    except KeyError as error:
        raise ValueError(f"id {error.args[0]} lies outside the tokenizer's vocabulary of {len(tokenizer)}.") from None


@dataclass(frozen=True, eq=False)
class _TokenTable:
    """The bytes of a vocabulary, and the added tokens that it was read with."""

    added: dict[int, AddedToken]
    size: int
    byte_lengths_V: torch.Tensor
    bytes_of: dict[int, bytes]


# Reading a vocabulary takes 10 ms and more, a short text's ids 0.1 ms: each tokenizer is read once.
_TOKEN_TABLES: WeakKeyDictionary[PreTrainedTokenizerBase, _TokenTable] = WeakKeyDictionary()


def _token_table(tokenizer: PreTrainedTokenizerBase) -> _TokenTable:
    """The tokenizer's table, read again if tokens were added since."""
    _check_byte_level(tokenizer)
    added, size = tokenizer.added_tokens_decoder, len(tokenizer)
    table = _TOKEN_TABLES.get(tokenizer)
    if table is None or (table.added, table.size) != (added, size):
        table = _TOKEN_TABLES[tokenizer] = _read_tokens(tokenizer.get_vocab(), added, size)
    return table


def _read_tokens(vocabulary: dict[str, int], added: dict[int, AddedToken], size: int) -> _TokenTable:
    lengths_V = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    lengths, bytes_of = lengths_V.numpy(), bytes_of_tokens(vocabulary, added)
    for index, held in bytes_of.items():
        lengths[index] = 0 if index in added and added[index].special else len(held)
    return _TokenTable(added, size, lengths_V, bytes_of)


@dataclass(frozen=True)
class TokenCounts:
    """The size of a text in `characters` (code points), UTF-8 `bytes` and `tokens` without special ones."""

    documents: int
    characters: int
    bytes: int
    tokens: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        """1 / (L_t / L_b) of the published bits per byte."""
        return self.bytes / self.tokens


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> TokenCounts:
    """Count a corpus in documents, characters, bytes and tokens, one text in memory at a time.

    Raises:
        ValueError: for a corpus without text, or a text with a lone surrogate.
    """
    documents = characters = num_bytes = tokens = 0
    for text in texts:
        documents += 1
        characters += len(text)
        tokens += len(encode_text(tokenizer, text))
        num_bytes += len(text.encode())
    if tokens == 0:
        raise ValueError("the corpus holds no text: give at least one document that is not empty.")
    return TokenCounts(documents, characters, num_bytes, tokens)


def _encodable(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for index, text in enumerate(texts):
        check_encodable(text, f"document {index}")
        empty = empty and not text
        yield text
    if empty:
        raise ValueError("the corpus holds no text: give at least one document that is not empty.")


def bos_and_eos(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """The ids of BOS and EOS, None if the tokenizer lacks one; transformers types them as anything."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bos if isinstance(bos, int) else None, eos if isinstance(eos, int) else None


def rust_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers` object that a fast tokenizer wraps; ValueError for a slow tokenizer."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: use one of the tokenizers library.")
    return tokenizer.backend_tokenizer


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are written in GPT-2's byte alphabet, one character of a token for each byte."""
    return isinstance(tokenizer, PreTrainedTokenizerFast) and byte_level.is_byte_level(tokenizer.backend_tokenizer)


def _check_byte_level(tokenizer: PreTrainedTokenizerBase) -> None:
    if not is_byte_level(tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a byte-level tokenizer: bytes per token need GPT-2's byte alphabet."
        )
