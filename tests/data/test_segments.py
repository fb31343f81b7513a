"""Rows on disk, cut into what is measured and put back together."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from modeling_eem.data.arrow_files import DATASET_FILE
from modeling_eem.data.documents import ROW_FOLDER_FILES, is_row_folder
from modeling_eem.data.fingerprint import FINGERPRINT_FILE
from modeling_eem.data.segments import RowFolder, Segments
from modeling_eem.entropy.corpus_run import ENTROPIES_FILE

PADDED_AND_PACKED = {
    "input_ids": [[9, 9, 0, 5, 6, 0, 7], [0, 3], [0, 4, 9]],
    "attention_mask": [[0, 0, 1, 1, 1, 2, 2], [1, 1], [1, 1, 0]],  # all but 0 is text
    "position_ids": [[0, 0, 0, 1, 2, 0, 1], [0, 1], [0, 1, 0]],
}


@pytest.mark.parametrize("first_row", [0, 1])
def test_segments_are_windows_without_padding(first_row: int) -> None:
    """A slice of a table, as data sets give it, has offsets of its own."""
    table = pa.table(PADDED_AND_PACKED).slice(first_row)
    segments = Segments.from_table(table)
    expected = [(0, [0, 5, 6]), (0, [0, 7]), (1, [0, 3]), (2, [0, 4])][2 * first_row :]
    assert [(row + first_row, ids.tolist()) for row, ids in zip(segments.rows, segments.ids)] == expected
    column = segments.column([ids.double() for ids in segments.ids]).to_pylist()
    masks = PADDED_AND_PACKED["attention_mask"][first_row:]
    for values, ids, mask in zip(column, PADDED_AND_PACKED["input_ids"][first_row:], masks):
        np.testing.assert_array_equal(values, np.where(np.array(mask) > 0, ids, np.nan))
    back = segments.values(pa.table({**table.to_pydict(), "values": column}), "values")
    assert [values.tolist() for values in back] == [ids for _, ids in expected]


def test_all_rows_are_read_once_and_in_order(tmp_path: Path) -> None:
    splits = {"train": Dataset.from_dict(PADDED_AND_PACKED), "held_out": Dataset.from_dict(PADDED_AND_PACKED)}
    DatasetDict(splits).save_to_disk(tmp_path / "rows")
    rows = RowFolder.open(tmp_path / "rows")
    seen: list[tuple[int, list[int]]] = []
    scan = rows.scan(lambda ids, row: seen.append((row, ids.tolist())))
    assert seen == 2 * [(0, [0, 5, 6]), (0, [0, 7]), (1, [0, 3]), (2, [0, 4])]
    assert (scan.num_rows, scan.num_tokens) == (6, 18)
    assert scan == RowFolder.open(tmp_path / "rows").scan(lambda *_: None)
    DatasetDict({"train": splits["train"], "held_out": splits["train"].select([0, 2, 1])}).save_to_disk(tmp_path / "b")
    assert scan.sha256 != RowFolder.open(tmp_path / "b").scan(lambda *_: None).sha256
    drawn = rows.draw()
    found = {tuple(ids.tolist()) for _ in range(50) for _, ids in next(drawn)}
    assert found == {(0, 5, 6), (0, 7), (0, 3), (0, 4)}


def test_empty_rows_are_never_drawn(tmp_path: Path) -> None:
    Dataset.from_dict({"input_ids": [[], [0, 5], []]}).save_to_disk(tmp_path / "rows")
    rows = RowFolder.open(tmp_path / "rows")
    assert rows.scan(lambda *_: None).num_tokens == 2
    drawn = rows.draw()
    assert [[ids.tolist() for _, ids in next(drawn)] for _ in range(9)] == 9 * [[[0, 5]]]
    Dataset.from_dict({"input_ids": [[0], []]}).filter(lambda row: not row["input_ids"]).save_to_disk(
        tmp_path / "none"
    )
    with pytest.raises(ValueError, match="holds no tokens"):
        RowFolder.open(tmp_path / "none").scan(lambda *_: None)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"input_ids": [[0.5, 5.0, 6.0]]}, "holds .*double.* in input_ids: it must be lists of integers"),
        ({"input_ids": ["abc"]}, "holds string in input_ids"),
        ({"input_ids": [[0, 5]], "attention_mask": [["1", "1"]]}, "in attention_mask: it must be lists of integers"),
        ({"input_ids": [[0, 5, 6]] * 2 + [None]}, "split train: row 2 has no input_ids"),
        ({"input_ids": [[0, None, 6]]}, "input_ids holds null in one of the rows 0 to 0"),
        (
            {"input_ids": [[0, 5], [0, 5, 6]], "attention_mask": [[1, 1], [1, 1]]},
            "row 1 has not as many attention_mask",
        ),
        (
            {"input_ids": [[0, 5], [0, 5, 6]], "attention_mask": [[1, 1], [1, 0, 1]]},
            "row 1 has an attention_mask with a",
        ),
    ],
)
def test_columns_that_hold_no_rows_of_ids(tmp_path: Path, columns: dict, message: str) -> None:
    Dataset.from_dict(columns).save_to_disk(tmp_path / "rows")
    with pytest.raises(ValueError, match=message):
        RowFolder.open(tmp_path / "rows").scan(lambda *_: None)


def test_what_is_no_data_set_of_rows(tmp_path: Path) -> None:
    assert {DATASET_FILE, FINGERPRINT_FILE, ENTROPIES_FILE} < {*ROW_FOLDER_FILES}
    assert not is_row_folder(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    Dataset.from_dict({"input_ids": []}).save_to_disk(tmp_path / "empty")
    assert is_row_folder(tmp_path / "empty")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(ValueError, match="is not a finished data set of rows"):
            RowFolder.open(folder)
    different = {"a": Dataset.from_dict({"input_ids": [[1]]}), "b": Dataset.from_dict({"input_ids": [[1]], "x": [1]})}
    DatasetDict(different).save_to_disk(tmp_path / "different")
    with pytest.raises(ValueError, match="the split b has other columns"):
        RowFolder.open(tmp_path / "different")
    assert torch.is_tensor(Segments.from_table(pa.table({"input_ids": [[1, 2]]})).ids[0])
