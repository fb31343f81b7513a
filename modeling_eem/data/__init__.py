"""Text → rows: documents, the tokenizer and its training, row modes, the collator, sources of known entropy."""

from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.documents import Document, read_documents
from modeling_eem.data.fingerprint import check_fingerprint
from modeling_eem.data.rows import ROW_MODES, Row, RowFormat, pack, pad, stream, windows
from modeling_eem.data.sources import CopySource, HiddenMarkovSource, MarkovSource, ParitySource, Source
from modeling_eem.data.tokenizer import TokenCounts, count_tokens, encode_text, token_byte_lengths, train_tokenizer

__all__ = [
    "ROW_MODES",
    "CausalCollator",
    "CopySource",
    "Document",
    "HiddenMarkovSource",
    "MarkovSource",
    "ParitySource",
    "Row",
    "RowFormat",
    "Source",
    "TokenCounts",
    "check_fingerprint",
    "count_tokens",
    "encode_text",
    "pack",
    "pad",
    "read_documents",
    "stream",
    "token_byte_lengths",
    "train_tokenizer",
    "windows",
]
