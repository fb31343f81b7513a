"""Row modes: what is kept, where rows begin, how long they are."""

from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from modeling_eem.data import Row, RowFormat, encode_text, pack, pad, stream, windows
from modeling_eem.models.loss_eem import IGNORE_INDEX

BOS, EOS = 0, 1
BYTE_LENGTHS = torch.tensor([0, 0, 1, 2, 3, 5])
Mode = Callable[..., Iterator[Row]]
Documents = list[tuple[int, list[int]]]
MODES = [windows, pad, stream, pack]


def _format(max_length: int, eos_token_id: int | None = None) -> RowFormat:
    return RowFormat(max_length, BOS, BYTE_LENGTHS, eos_token_id)


def _documents(max_tokens: int = 30) -> Documents:
    """A dozen documents of random lengths, some of them empty, numbered by threes."""
    lengths = [*torch.randint(0, max_tokens, (10,)).tolist(), 0, 1]
    return [(3 * i, torch.randint(2, len(BYTE_LENGTHS), (length,)).tolist()) for i, length in enumerate(lengths)]


def _text(rows: list[Row]) -> Documents:
    """The rows' tokens but BOS, document by document."""
    texts: dict[int, list[int]] = {}
    for row in rows:
        for index, token in zip(row["document_ids"], row["input_ids"], strict=True):
            texts.setdefault(index, []).extend([token] if token != BOS else [])
    return sorted(texts.items())


@pytest.mark.parametrize("eos_token_id", [None, EOS])
@pytest.mark.parametrize("max_length", [2, 3, 8, 9, 100])
@pytest.mark.parametrize("mode", MODES)
def test_every_token_is_in_exactly_one_row(mode: Mode, max_length: int, eos_token_id: int | None) -> None:
    documents = _documents()
    rows = list(mode(documents, _format(max_length, eos_token_id)))
    end = [] if eos_token_id is None else [eos_token_id]
    expected = [(index, ids + end) for index, ids in documents if ids]
    if mode is pad:  # but for what it truncates
        expected = [(index, ids[: max_length - 1]) for index, ids in expected]
    assert _text(rows) == expected
    assert all(row["input_ids"][0] == BOS and 2 <= len(row["input_ids"]) <= max_length for row in rows)
    assert all(row["num_bytes"] == BYTE_LENGTHS[row["input_ids"]].sum() for row in rows)


def test_windows_are_full_but_for_the_last_of_a_document() -> None:
    rows = list(windows([(7, [2, 3, 4, 5, 2]), (9, [3, 3])], _format(3)))
    assert rows == [
        {"input_ids": [BOS, 2, 3], "document_ids": [7, 7, 7], "num_bytes": 3},
        {"input_ids": [BOS, 4, 5], "document_ids": [7, 7, 7], "num_bytes": 8},
        {"input_ids": [BOS, 2], "document_ids": [7, 7], "num_bytes": 1},
        {"input_ids": [BOS, 3, 3], "document_ids": [9, 9, 9], "num_bytes": 4},
    ]


def test_pad_truncates_and_says_the_end_only_where_it_is() -> None:
    rows = list(pad([(0, [2, 3, 4, 5]), (1, [2, 3]), (2, [2])], _format(4, EOS)))
    assert [row["input_ids"] for row in rows] == [[BOS, 2, 3, 4], [BOS, 2, 3, EOS], [BOS, 2, EOS]]
    assert [row["num_bytes"] for row in rows] == [6, 3, 1]


@pytest.mark.parametrize("max_length", [2, 5, 9])
def test_stream_rows_are_full_and_bos_stands_between_documents(max_length: int) -> None:
    documents = _documents()
    rows = list(stream(documents, _format(max_length)))
    assert {len(row["input_ids"]) for row in rows[:-1]} == {max_length}
    # The whole stream again: a row's own BOS is dropped where it only repeats or interrupts a document.
    tokens = [pair for row in rows for pair in zip(row["document_ids"], row["input_ids"])]
    begins = [at for at, (index, _) in enumerate(tokens) if at == 0 or tokens[at - 1][0] != index]
    assert [tokens[at] for at in begins] == [(index, BOS) for index, ids in documents if ids]
    inside = [at for at, (_, token) in enumerate(tokens) if token == BOS and at not in begins]
    assert all(at % max_length == 0 for at in inside), "BOS inside a document, but not at a row's beginning"


def test_stream_by_hand() -> None:
    rows = list(stream([(0, [2, 3, 4]), (1, [5]), (2, [2, 2])], _format(4)))
    assert [row["input_ids"] for row in rows] == [[BOS, 2, 3, 4], [BOS, 5, BOS, 2], [BOS, 2]]
    assert [row["document_ids"] for row in rows] == [[0] * 4, [1, 1, 2, 2], [2, 2]]


def _segments(row: Row) -> list[slice]:
    starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(row["input_ids"])])]


@pytest.mark.parametrize("max_length", [2, 6, 11])
def test_packed_rows_are_windows_side_by_side(max_length: int) -> None:
    documents = [(index, ids) for seed in range(20) for index, ids in _documents()]
    unpacked = [dict(row) for row in windows(documents, _format(max_length))]
    rows = list(pack(documents, _format(max_length)))
    found = []
    for row in rows:
        assert len({len(values) for values in row.values() if isinstance(values, list)}) == 1
        for segment in _segments(row):
            ids = row["input_ids"][segment]
            assert row["position_ids"][segment] == list(range(len(ids)))
            assert row["labels"][segment] == [IGNORE_INDEX, *ids[1:]]
            num_bytes = int(BYTE_LENGTHS[ids].sum())
            found.append({"input_ids": ids, "document_ids": row["document_ids"][segment], "num_bytes": num_bytes})
    assert sorted(found, key=str) == sorted(unpacked, key=str)
    assert sum(row["num_bytes"] for row in rows) == sum(row["num_bytes"] for row in unpacked)
    assert all(2 <= len(row["input_ids"]) <= max_length for row in rows)


def test_packing_is_best_fit() -> None:
    """The third window goes where it leaves the least room, not where it fits first."""
    rows = list(pack([(index, [2] * (length - 1)) for index, length in enumerate([4, 7, 3, 6])], _format(10)))
    assert [[row["document_ids"][segment][0] for segment in _segments(row)] for row in rows] == [[1, 2], [0, 3]]


def test_packing_wastes_little_and_holds_few_rows() -> None:
    read = 0

    def documents() -> Iterator[tuple[int, list[int]]]:
        nonlocal read
        for index, length in enumerate(torch.randint(1, 64, (2000,)).tolist()):
            read += 1
            yield index, [2] * length

    rows = pack(documents(), _format(64))
    first = next(rows)
    assert read < 200, "rows come before the corpus is read"
    rows = [first, *rows]
    assert sum(len(row["input_ids"]) for row in rows) > 0.97 * 64 * len(rows)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_generated_as_documents_come(mode: Mode) -> None:
    def documents() -> Iterator[tuple[int, list[int]]]:
        yield 0, [2] * 20
        raise RuntimeError("read too far")

    assert next(iter(mode(documents(), _format(8))))["document_ids"][0] == 0


@pytest.mark.parametrize("mode", [windows, stream, pack])
def test_bytes_are_those_of_the_text(mode: Mode, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also where a row ends inside a character: 👍🏽 is several tokens."""
    texts = ["It was 👍🏽👍🏽👍🏽 and ünder it, 日本語。", "", "a", "the sea " * 50]
    row_format = RowFormat.from_tokenizer(tokenizer, max_length=7, add_eos=True)
    assert row_format.bos_token_id == row_format.eos_token_id == 0
    rows = list(mode(enumerate(encode_text(tokenizer, text) for text in texts), row_format))
    assert sum(row["num_bytes"] for row in rows) == len("".join(texts).encode())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "documents, message",
    [
        ([], "no tokens"),
        ([(0, []), (1, [])], "no tokens"),
        ([(4, [2, 6])], "document 4 .* 2 to 6, outside the vocabulary of 6"),
        ([(0, [2]), (5, [-1, 3])], "document 5 .* -1 to 3, outside"),
        ([(2, [3, BOS])], "document 2 holds a special token"),
        ([(2, [3, EOS])], "document 2 holds a special token"),
    ],
)
def test_bad_documents_are_named(mode: Mode, documents: Documents, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(mode(documents, _format(4)))


def test_bad_formats_are_named(trained: PreTrainedTokenizerFast) -> None:
    for arguments, message in [
        ((1, 0, BYTE_LENGTHS), "max_length must be at least 2"),
        ((4, 6, BYTE_LENGTHS), "id 6 lies outside the vocabulary of 6"),
        ((4, 0, BYTE_LENGTHS, -1), "id -1 lies outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            RowFormat(*arguments)
    bare = PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer)
    with pytest.raises(ValueError, match="no BOS or EOS token"):
        RowFormat.from_tokenizer(bare, 8)
