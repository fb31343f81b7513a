"""Texts → ids that hold the text byte by byte. Long texts are encoded in pieces.

tokenizers needs about a hundred bytes for each character that it encodes at one time: 50 MB of text take gigabytes. A
long text is cut between a letter and " x", or between a line's end and x (x a letter). A byte-level tokenizer always
splits there, so the ids are those of the whole text. A probe tests whether a tokenizer splits there; one that does not
encodes texts whole.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from modeling_eem.data.documents import Document
from modeling_eem.data.tokenizer import rust_tokenizer, token_bytes

PIECE_LENGTH = 1 << 18  # characters of a piece, at least; a longer text is cut
_CUT = re.compile(r"(?<=[^\W_])(?= [^\W\d_])|(?<=\S\n)(?=[^\W\d_])")
_PROBE = "He said: the sea's 12 whales (all white)\nwere é calm.\n\nThen x=1; Was the\nend?  Yes the\tend"


class AlteredTextError(ValueError):
    """A text that a tokenizer does not keep byte by byte."""


class TextEncoder:
    """Encodes texts with a byte-level tokenizer: no special token added or read from the text, nothing cut off.

    Every text is compared with the bytes of its ids, because bits per byte are those of the text only if it is
    unchanged (a normalizer that lowercases changes it and keeps the number of bytes).

    Args:
        tokenizer: byte-level, with GPT-2's alphabet.

    Raises:
        ValueError: for another tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bytes = vocabulary_bytes(tokenizer)
        self._backend = Tokenizer.from_str(rust_tokenizer(tokenizer).to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._can_cut = _splits_at_cuts(self._backend)

    def encode(self, text: str, at_most: int | None = None) -> NDArray[np.int32]:
        """The ids of a text, `[t]`; given `at_most`, of a long text at least that many.

        Raises:
            AlteredTextError: if the ids do not hold the text's bytes.
        """
        pieces, length = [], 0
        for piece in self._pieces(text):
            pieces += self.encode_batch([piece])
            length += len(pieces[-1])
            if at_most is not None and length >= at_most:
                break
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, np.int32)])

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each text; no text is cut into pieces.

        Raises:
            AlteredTextError: as `encode`.
        """
        self._backend.encode_special_tokens = True  # their names in a text are text; a pickled tokenizer forgets it
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        for text, ids in zip(texts, rows):
            self._check(text, ids)
        return [np.array(ids, np.int32) for ids in rows]

    def _check(self, text: str, ids: Sequence[int]) -> None:
        needed, kept = text.encode(), b"".join([self._bytes[index] for index in ids])
        if kept == needed:
            return
        place = next((i for i, (a, b) in enumerate(zip(needed, kept)) if a != b), min(len(needed), len(kept)))
        shown = [data[max(0, place - 8) : place + 8].decode(errors="replace") for data in (needed, kept)]
        raise AlteredTextError(
            f"the tokenizer alters the text ({shown[0]!r} becomes {shown[1]!r}); bits per byte would then be of "
            "another text: use a tokenizer that keeps every byte."
        )

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while self._can_cut and len(text) - start > PIECE_LENGTH:
            if (cut := _CUT.search(text, start + PIECE_LENGTH)) is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:] if start else text


def encoded_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Each document's number and ids, for a row mode.

    Raises:
        AlteredTextError: as `TextEncoder.encode`, with the document's file and number.
    """
    encoder = TextEncoder(tokenizer)
    for document in documents:
        try:
            yield document.index, encoder.encode(document.text)
        except AlteredTextError as error:
            raise AlteredTextError(f"{document.path}: document {document.index}: {error}") from error


def vocabulary_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of every token by its id, see `token_bytes`; empty for an id without a token."""
    ids = sorted(tokenizer.get_vocab().values())
    held = [b""] * (ids[-1] + 1)
    for index, data in zip(ids, token_bytes(tokenizer, ids)):
        held[index] = data
    return held


def _splits_at_cuts(backend: Tokenizer) -> bool:
    """Whether each `_CUT` of the probe begins a new piece and changes no id, and no added token spans one."""
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if backend.pre_tokenizer is None or any(token.lstrip or token.rstrip or " " in token.content for token in added):
        return False

    def ids(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    starts = {start for _, (start, _) in backend.pre_tokenizer.pre_tokenize_str(_PROBE)}
    cuts = [cut.start() for cut in _CUT.finditer(_PROBE)]
    return all(cut in starts and ids(_PROBE[:cut]) + ids(_PROBE[cut:]) == ids(_PROBE) for cut in cuts)
