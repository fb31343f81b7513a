"""Rows on disk: shards as Arrow files, and the folder of them that `datasets.load_from_disk` reads."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from modeling_eem.data.fingerprint import read_fingerprint
from modeling_eem.data.rows import Row
from modeling_eem.files import full_disk_named, part_beside, write_atomically
from modeling_eem.models.loss_eem import IGNORE_INDEX

TRAIN, HELD_OUT = "train", "held_out"
SHARDS_FILE = "shards.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOGS_FOLDER = "logs"
RESULTS_FILE = "results.json"
COUNTED = ("documents", "skipped", "text_bytes", "rows", "tokens", "bytes")
DATASET_FILE = "dataset_dict.json"  # written last: a folder that has it is complete
_ROWS_A_BATCH = 64  # their lists fit a processor's cache


@dataclass(frozen=True)
class RowColumns:
    """The columns that rows are stored in; `CausalCollator` takes them with any padding.

    | column | holds | in padding |
    |---|---|---|
    | `input_ids` | tokens | `pad_token_id` |
    | `attention_mask` | 1 | 0 |
    | `document_ids` | for each token, its document's number in the corpus | -1 |
    | `position_ids`, `labels` | of packed rows only, see `Row` | 0, -100 |
    | `num_bytes` | UTF-8 bytes that the row holds, one number | |

    Attributes:
        max_length: n, the width of a padded row.
        padding: the side that is filled up to n, or "none": a row is only as long as its tokens.
        pad_token_id: None only without padding.
        packed: whether rows have positions and labels of their own.
    """

    max_length: int
    padding: Literal["none", "left", "right"]
    pad_token_id: int | None
    packed: bool

    def batch(self, rows: Sequence[Row]) -> pa.RecordBatch:
        """Rows as one Arrow batch, its columns in the order of `schema`."""
        lengths_B = np.array([len(row["input_ids"]) for row in rows])
        width = 0 if self.padding == "none" else self.max_length
        real_BN = np.arange(width) < lengths_B[:, None]
        real_BN = real_BN[:, ::-1] if self.padding == "left" else real_BN
        widths_B = lengths_B if self.padding == "none" else np.full_like(lengths_B, width)
        offsets = pa.array(np.append(0, widths_B.cumsum()), pa.int32())

        def column(name: str, dtype: str) -> pa.Array:
            size = int(lengths_B.sum())
            if name == "attention_mask":
                flat = np.ones(size, dtype)
            else:
                flat = np.fromiter(chain.from_iterable(row[name] for row in rows), dtype, count=size)
            if self.padding != "none":
                padded_BN = np.full(real_BN.shape, self._fills[name], dtype)
                padded_BN[real_BN] = flat
                flat = padded_BN.ravel()
            return pa.ListArray.from_arrays(offsets, pa.array(flat))

        columns = [column(name, dtype) for name, dtype in self._dtypes.items()]
        columns.append(pa.array([row["num_bytes"] for row in rows], pa.int64()))
        return pa.record_batch(columns, schema=self.schema)

    @property
    def schema(self) -> pa.Schema:
        columns = [(name, pa.list_(pa.from_numpy_dtype(dtype))) for name, dtype in self._dtypes.items()]
        return pa.schema([*columns, ("num_bytes", pa.int64())])

    @property
    def _dtypes(self) -> dict[str, str]:
        common = {"input_ids": "int32", "attention_mask": "int8", "document_ids": "int32"}
        return common | ({"position_ids": "int32", "labels": "int32"} if self.packed else {})

    @property
    def _fills(self) -> dict[str, int | None]:
        fills = {"input_ids": self.pad_token_id, "attention_mask": 0, "document_ids": -1, "position_ids": 0}
        return fills | {"labels": IGNORE_INDEX}


def write_rows(path: Path, rows: Iterable[Row], columns: RowColumns) -> Counter[str]:
    """Write rows to an Arrow file, one batch in memory at a time; `path` is whole or missing.

    Returns:
        The number of `rows`, of real `tokens` (BOS included), and of the UTF-8 `bytes` in them.
    """
    counts: Counter[str] = Counter()
    with arrow_stream(path, columns.schema) as writer:
        for batch in _batches(rows):
            writer.write_batch(columns.batch(batch))
            tokens, num_bytes = sum(len(row["input_ids"]) for row in batch), sum(row["num_bytes"] for row in batch)
            counts.update(rows=len(batch), tokens=tokens, bytes=num_bytes)
    return counts


@contextmanager
def arrow_stream(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    """An Arrow file, written under another name and renamed to `path` once it is whole."""
    # A process that outlives a killed start may still write the same file, so each process uses its own name.
    path.parent.mkdir(exist_ok=True)
    with full_disk_named(path.parent, path), part_beside(path) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            yield writer
        part.replace(path)


def shard_file(folder: Path, split: str, rank: int, num_shards: int) -> Path:
    """The file of a shard's rows of a split; a shard without such rows has no file."""
    return folder / split / f"data-{rank:05d}-of-{num_shards:05d}.arrow"


def finish_dataset(folder: Path, splits: Sequence[str], schema: pa.Schema, identity: str) -> None:
    """Make the Arrow files in `folder` a DatasetDict that `load_from_disk` reads; before, it does not load.

    Args:
        splits: folders of Arrow files.
        schema: that of the files.
        identity: everything that determines the rows; `datasets` caches by a hash of it.
    """
    from datasets import DatasetInfo, Features  # slow to import, and needed only here

    from modeling_eem.data.row_checksums import record_contents

    info = DatasetInfo(features=Features.from_arrow_schema(schema))
    with full_disk_named(folder):
        for split in splits:
            names = [file.name for file in (folder / split).glob("data-*.arrow")]
            files = sorted(names, key=lambda name: (len(name), name))  # past 99,999 shards the numbers grow
            state = {
                "_data_files": [{"filename": name} for name in files],
                "_fingerprint": hashlib.blake2b(f"{identity} {split}".encode(), digest_size=8).hexdigest(),
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": split,
            }
            info.write_to_directory(str(folder / split))
            write_atomically(folder / split / "state.json", json.dumps(state, indent=2) + "\n")
            for leftover in (folder / split).glob(".*.part"):  # of writers that were killed
                leftover.unlink(missing_ok=True)
        record_contents(folder, splits)
        write_atomically(folder / DATASET_FILE, json.dumps({"splits": list(splits)}) + "\n")


class UnusableCorpusError(ValueError):
    """A corpus that yields no data set."""


def columns_of(made: dict[str, Any]) -> RowColumns:
    """The columns that a fingerprint describes."""
    return RowColumns(made["max_length"], made["padding"], made["pad_token_id"], made["rows"] == "pack")


def finished_shards(folder: Path) -> set[int]:
    """The shards that datatrove has marked as completed."""
    return {int(marker.name) for marker in (folder / LOGS_FOLDER / "completions").glob("[0-9]*")}


def count_shards(folder: Path, shards: Iterable[int]) -> dict[str, Counter[str]]:
    """The sums of `COUNTED` over finished shards, by split, from datatrove's statistics."""
    counts: dict[str, Counter[str]] = {TRAIN: Counter(), HELD_OUT: Counter()}
    for shard in shards:
        path = folder / LOGS_FOLDER / "stats" / f"{shard:05d}.json"
        try:
            _add_counts(counts, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged or missing: remove {folder} and start again.") from error
    return counts


def _add_counts(counts: dict[str, Counter[str]], steps: list[dict[str, Any]]) -> None:
    for step in steps:
        _, split = step["name"].split(": ")
        for name in COUNTED:
            value = step["stats"].get(name, 0)  # a bare number if the statistic was updated only once
            counts[split][name] += value["total"] if isinstance(value, dict) else value


def write_data_set(folder: Path, seconds: float | None = None, mb_per_second: float | None = None) -> dict[str, Any]:
    """Turn the Arrow files of all shards into a data set, and write its counts to `results.json`.

    Args:
        folder: the rows' folder.
        seconds, mb_per_second: how long this start took, and how many UTF-8 megabytes of documents it read a second;
            None if the shards were made elsewhere.

    Raises:
        UnusableCorpusError: for a corpus without text, one that does not fill a row, or is all held out.
        ValueError: for missing shards.
    """
    made = read_fingerprint(folder)
    if missing := made["shards"] - len(finished_shards(folder)):
        raise ValueError(
            f"{missing} of {made['shards']} shards failed: see {folder / LOGS_FOLDER}; the same command resumes."
        )
    counts = count_shards(folder, range(made["shards"]))
    total = counts[TRAIN] + counts[HELD_OUT]
    if not total["rows"]:
        raise UnusableCorpusError(
            f"the corpus holds no text that can be read: {total['skipped']:,} documents were left out, and all others "
            "are empty; name files with text."
        )
    if total["tokens"] < made["max_length"] and not made["may_be_short"]:
        raise UnusableCorpusError(
            f"the corpus holds {total['tokens']:,} tokens, less than one row of {made['max_length']:,}: give more "
            "text or a smaller --max-length."
        )
    if not counts[TRAIN]["rows"]:
        raise UnusableCorpusError("all documents with text are held out: lower --held-out.")
    splits = {split: {name: count[name] for name in COUNTED} for split, count in counts.items() if count["rows"]}
    results = {"splits": splits, **{name: total[name] for name in COUNTED}}
    results |= {"seconds": seconds, "mb_per_second": mb_per_second}
    write_atomically(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    finish_dataset(folder, list(splits), columns_of(made).schema, json.dumps(made, sort_keys=True))
    return results


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    return iter(lambda: list(islice(rows, _ROWS_A_BATCH)), [])
