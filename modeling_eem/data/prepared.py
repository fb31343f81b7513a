"""A folder of prepared rows: where its files are, what its finished shards count, and its completion."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modeling_eem.data.fingerprint import read_fingerprint
from modeling_eem.data.row_files import RowColumns, finish_dataset
from modeling_eem.report import write_atomically

TRAIN, HELD_OUT = "train", "held_out"
SHARDS_FILE = "shards.jsonl"
TOKENIZER_FOLDER = "tokenizer"
LOGS_FOLDER = "logs"
RESULTS_FILE = "results.json"
COUNTED = ("documents", "skipped", "text_bytes", "rows", "tokens", "bytes")


class UnusableCorpusError(ValueError):
    """A corpus that no data set comes of."""


def columns_of(made: dict[str, Any]) -> RowColumns:
    """The columns that a fingerprint describes."""
    return RowColumns(made["max_length"], made["padding"], made["pad_token_id"], made["rows"] == "pack")


def finished_shards(folder: Path) -> set[int]:
    """The shards that datatrove has marked as completed."""
    return {int(marker.name) for marker in (folder / LOGS_FOLDER / "completions").glob("[0-9]*")}


def count_shards(folder: Path, shards: Iterable[int]) -> dict[str, Counter[str]]:
    """What finished shards add up to, by split: `COUNTED`, from datatrove's statistics."""
    counts: dict[str, Counter[str]] = {TRAIN: Counter(), HELD_OUT: Counter()}
    for shard in shards:
        for step in json.loads((folder / LOGS_FOLDER / "stats" / f"{shard:05d}.json").read_text()):
            _, split = step["name"].split(": ")
            for name in COUNTED:
                value = step["stats"].get(name, 0)  # a bare number where a statistic was updated once
                counts[split][name] += value["total"] if isinstance(value, dict) else value
    return counts


def finish(folder: Path, seconds: float | None = None, mb_per_second: float | None = None) -> dict[str, Any]:
    """Turn the Arrow files of all shards into a data set, and write what they count to `results.json`.

    Args:
        folder: of the rows.
        seconds, mb_per_second: how long this start took, and the UTF-8 megabytes of documents that it read in each;
            None where the shards were made elsewhere.

    Raises:
        UnusableCorpusError: for a corpus that does not fill a row, or is all held out.
        ValueError: for shards that are missing.
    """
    made = read_fingerprint(folder)
    if missing := made["shards"] - len(finished_shards(folder)):
        raise ValueError(
            f"{missing} of {made['shards']} shards failed: see {folder / LOGS_FOLDER}; the same command resumes."
        )
    counts = count_shards(folder, range(made["shards"]))
    total = counts[TRAIN] + counts[HELD_OUT]
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
