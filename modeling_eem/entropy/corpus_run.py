"""Rows on disk → the same rows with `token_entropies`, in parts that processes share and a killed run keeps.

What is unusual:

* Rows are cut into parts of about a minute's work for one process; a part is a file. It is written under another name
  and renamed, so a part that exists is finished. Which process makes it changes neither its contents nor its place.
* Processes wait for one another only at their end: the main process reads their progress from the files.
* `dataset_dict.json` is written last: a folder that is not complete does not load.
"""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, List, Value
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.data.arrow_files import (
    DATASET_FILE,
    RESULTS_FILE,
    TOKENIZER_FOLDER,
    arrow_stream,
    finish_dataset,
    shard_file,
)
from modeling_eem.data.fingerprint import FINGERPRINT_FILE, tokenizer_sha256
from modeling_eem.data.row_checksums import CONTENTS_FILE, verify_rows
from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.data.segments import RowFolder, Scan, Segments, naming
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.teacher import TeacherEntropy
from modeling_eem.files import LOCK_FILE, full_disk_named, locked, read_record, write_atomically

ENTROPIES_FILE = "entropies.json"
Estimators: TypeAlias = Mapping[str, EntropyEstimator]  # by column, `token_entropies` and those of earlier stages
_PART_SECONDS = 60.0
_MEASURED_SECONDS = 5.0
_POLL_SECONDS = 0.5
_BATCHES_A_CALL = 4  # times the estimator's `batch_tokens`: enough to group rows by length


@dataclass(frozen=True)
class Part:
    """Rows `start … stop - 1` of a split, and the file for them."""

    split: str
    start: int
    stop: int
    file: Path

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def is_finished(self) -> bool:
        return self.file.exists()


def measure_speed(estimators: Estimators, rows: RowFolder) -> float:
    """Tokens a second on rows drawn at random, in growing batches; the last and largest batch counts.

    A first row only warms up. At most a quarter of a small corpus is drawn: on 131 rows measuring took as long as the
    work itself.
    """
    drawn, speed, used, count = rows.draw(), 0.0, 0.0, 1
    while count <= 2 or (used < _MEASURED_SECONDS and 8 * count <= rows.num_rows):
        segments = [segment for _ in range(count) for segment in next(drawn)]
        began = time.perf_counter()
        for _ in _estimate(estimators, segments):
            pass
        took = time.perf_counter() - began
        speed, used, count = sum(len(ids_T) for _, ids_T in segments) / took, used + took, 2 * count
    return speed


_BEGUN = {
    "method": str,
    "unit": str,
    "options": dict,
    "model_sha256": list,
    "rows": int,
    "tokens": int,
    "rows_sha256": str,
    "rows_a_part": int,
}


def read_begun(output: Path) -> dict[str, Any] | None:
    """What a folder was begun with; None for a folder that does not exist.

    Raises:
        ValueError: for a folder of something else, or a damaged record.
    """
    path = output / ENTROPIES_FILE
    if path.exists():
        begun = read_record(path, _BEGUN)
        if begun["rows_a_part"] < 1:
            raise ValueError(f"{path} is damaged at 'rows_a_part', which is {begun['rows_a_part']}: make it again.")
        return begun
    if output.exists() and (not output.is_dir() or any(file.name != LOCK_FILE for file in output.iterdir())):
        raise ValueError(f"{output} exists, and eem entropy did not make it: choose another --output.")
    return None


@contextmanager
def claimed(output: Path) -> Iterator[dict[str, Any] | None]:
    """Lock the output against other processes; yields what it was begun with, see `read_begun`.

    A folder in which nothing was begun is removed again.
    """
    read_begun(output)
    with locked(output):
        try:
            yield read_begun(output)
        finally:
            if all(file.name == LOCK_FILE for file in output.iterdir()):
                shutil.rmtree(output)


def check_begun(output: Path, begun: dict[str, Any] | None, identity: dict[str, Any]) -> None:
    """Raise a ValueError for a folder that was begun with another model, method, options or data."""
    # A folder that 0.1 began does not name its tokenizers.
    if other := [name for name, value in identity.items() if begun is not None and begun.get(name, value) != value]:
        raise ValueError(
            f"{output} was begun with other values of {', '.join(other)}: choose another --output, or remove it."
        )


def run_identity(
    estimators: Estimators,
    models: Sequence[PreTrainedModel],
    scan: Scan,
    options: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Everything that determines the entropies of rows; of an estimator that reads their text, tokenizers too."""
    estimator = estimators[TOKEN_ENTROPIES]
    read: dict[str, Any] = {}
    if isinstance(estimator, TeacherEntropy) and tokenizer is not None:
        read = {"tokenizers": [tokenizer_sha256(tokenizer), tokenizer_sha256(estimator.teacher_tokenizer)]}
    return read | {
        "method": estimator.method,
        "unit": estimator.unit,
        "options": options,
        "model_sha256": [weights_sha256(model) for model in models],
        "rows": scan.num_rows,
        "tokens": scan.num_tokens,
        "rows_sha256": scan.sha256,
    }


def weights_sha256(model: PreTrainedModel) -> str:
    """A SHA-256 of a model's config and weights; it does not depend on their folder."""
    config = model.config.to_diff_dict()
    for origin in ("_name_or_path", "transformers_version"):
        config.pop(origin, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def part_rows(rows: RowFolder, identity: dict[str, Any], tokens_per_second: float, processes: int) -> int:
    """Rows of a part: about a minute's work for one process, but small enough for four parts a process."""
    minute = tokens_per_second * _PART_SECONDS * rows.num_rows / identity["tokens"]
    return max(1, min(int(minute), -(-rows.num_rows // (4 * processes))))


@dataclass(frozen=True, eq=False)
class EntropyRun:
    """The work of making a folder of rows with `token_entropies`.

    Attributes:
        rows: the rows to measure.
        output: the folder to make.
        estimators: measure the rows, one a column.
        rows_a_part: see `part_rows`.
    """

    rows: RowFolder
    output: Path
    estimators: Estimators
    rows_a_part: int

    def parts(self) -> list[Part]:
        """All parts, in the order of the rows."""
        parts = []
        for split, rows in self.rows.splits.items():
            starts = range(0, len(rows), self.rows_a_part)
            for number, start in enumerate(starts):
                file = shard_file(self.output, split, number, len(starts))
                parts.append(Part(split, start, min(start + self.rows_a_part, len(rows)), file))
        return parts

    def begin(self, identity: dict[str, Any], origin: dict[str, Any]) -> None:
        """Write what determines the entropies, where they come from, and the rows' tokenizer if it is known."""
        if not (self.output / ENTROPIES_FILE).exists():
            content = {**identity, "rows_a_part": self.rows_a_part, **origin}
            write_atomically(self.output / ENTROPIES_FILE, json.dumps(content, indent=2) + "\n")
        if self.rows.has_fingerprint:
            write_atomically(self.output / FINGERPRINT_FILE, (self.rows.path / FINGERPRINT_FILE).read_text())
            with full_disk_named(self.output / TOKENIZER_FOLDER):
                shutil.copytree(self.rows.tokenizer_folder, self.output / TOKENIZER_FOLDER, dirs_exist_ok=True)

    def rows_left(self) -> int:
        return sum(part.num_rows for part in self.parts() if not part.is_finished)

    def make(self, process: int, processes: int, report: Callable[[int], None]) -> list[Part]:
        """Make every `processes`-th part that is not there yet.

        Args:
            report: called with the number of newly finished rows: the process's own rows; in process 0 all rows.

        Returns:
            In process 0, the parts of other processes that were not reported yet.
        """
        left = [(number % processes, part) for number, part in enumerate(self.parts()) if not part.is_finished]
        awaited = [part for maker, part in left if process == 0 and maker != 0]
        for maker, part in left:
            if maker == process:
                self._make(part, report)
                awaited = _still_awaited(awaited, report)
        return awaited

    def write_data_set(self, identity: dict[str, Any], documents: dict[str, int]) -> None:
        """Make the parts a data set, and write its counts to `results.json`.

        Args:
            identity: what determines the entropies.
            documents: the counts of the text's documents; empty for a folder of rows.

        Raises:
            ValueError: for a part that is damaged or holds other rows, a file that is no part, or more or fewer tokens
                in all than the run has.
        """
        totals: dict[str, Counter[str]] = {}
        parts = self.parts()
        self._refuse_others(parts)
        for part in parts:
            total = totals.setdefault(part.split, Counter())
            table = _read_part(part)
            total["rows"] += len(table)
            total["tokens"] += len(Segments.from_table(table).places_N)
            for column in self.estimators:
                values_N = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                total[f"scored {column}"] += int((~np.isnan(values_N)).sum())
                total[column] += float(np.nansum(values_N, dtype=np.float64))  # pyright: ignore[reportArgumentType]
        if (tokens := sum(total["tokens"] for total in totals.values())) != identity["tokens"]:
            raise ValueError(
                f"{self.output} holds {tokens:,} tokens, not the run's {identity['tokens']:,}: some of its files are "
                "another run's, so remove the folder and start again."
            )
        if (self.output / DATASET_FILE).exists() and (self.output / CONTENTS_FILE).exists():
            try:  # new check sums would vouch for files that were damaged since they were finished
                verify_rows(self.output)
            except ValueError as error:
                raise ValueError(f"{error} Or remove the file, and start the same command again.") from error
        splits = {split: self._counts(total) for split, total in totals.items()}
        estimator = self.estimators[TOKEN_ENTROPIES]
        results = {"method": estimator.method, "unit": estimator.unit, "splits": splits, **documents}
        write_atomically(self.output / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        schema = self._schema(next(iter(splits)))
        finish_dataset(self.output, list(splits), schema, json.dumps(identity, sort_keys=True))

    def _refuse_others(self, parts: list[Part]) -> None:
        """ValueError for an Arrow file that is no part: it would become part of the data set."""
        found = {file for folder in {part.file.parent for part in parts} for file in folder.glob("data-*.arrow")}
        others = found - {part.file for part in parts}
        for file in sorted(others):
            raise ValueError(f"{file} is no part of this run: remove it, and start the same command again.")

    def _make(self, part: Part, report: Callable[[int], None]) -> None:
        table = self.rows.table(part.split, range(part.start, part.stop))
        segments = Segments.from_table(table)
        values: dict[str, list[Tensor]] = {column: [] for column in self.estimators}
        finished = reported = measured = 0
        numbered = [(part.start + row, ids_T) for row, ids_T in zip(segments.rows, segments.ids)]
        with naming(f"{self.rows.path}, split {part.split}"):
            for some in _estimate(self.estimators, numbered):
                for column, its_values in some.items():
                    values[column] += its_values
                measured += len(some[TOKEN_ENTROPIES])
                finished = segments.rows[measured] if measured < len(segments.ids) else part.num_rows
                report(finished - reported)
                reported = finished
        for column, its_values in values.items():
            table = table.append_column(column, segments.column(its_values))
        whole = table.cast(self._schema(part.split))
        with arrow_stream(part.file, whole.schema) as writer:
            writer.write_table(whole)

    def _counts(self, total: Counter[str]) -> dict[str, Any]:
        """Rows, tokens, scored tokens and mean of the last stage; with several stages, the means of all of them."""
        means = {column: total[column] / max(total[f"scored {column}"], 1) for column in self.estimators}
        counts: dict[str, Any] = {name: total[name] for name in ("rows", "tokens")}
        counts |= {"scored": total[f"scored {TOKEN_ENTROPIES}"], "mean": means[TOKEN_ENTROPIES]}
        return counts | ({"stages": means} if len(means) > 1 else {})

    def _schema(self, split: str) -> pa.Schema:
        features = self.rows.splits[split].features
        return Features({**features, **dict.fromkeys(self.estimators, List(Value("float32")))}).arrow_schema


def _read_part(part: Part) -> pa.Table:
    advice = "remove it, and the same command makes it again."
    try:
        with pa.memory_map(str(part.file)) as source:
            table = pa.ipc.open_stream(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{part.file} is damaged: {advice}") from error
    if len(table) != part.num_rows:
        raise ValueError(f"{part.file} holds {len(table)} rows in place of {part.num_rows}: {advice}")
    return table


def watch(awaited: list[Part], is_over: Callable[[], bool], report: Callable[[int], None]) -> None:
    """Report parts that other processes finish, until `is_over`."""
    while awaited and not is_over():
        time.sleep(_POLL_SECONDS)
        awaited = _still_awaited(awaited, report)


def _still_awaited(parts: list[Part], report: Callable[[int], None]) -> list[Part]:
    awaited = []
    for part in parts:
        if part.is_finished:
            report(part.num_rows)
        else:
            awaited.append(part)
    return awaited


def _estimate(
    estimators: Estimators, segments: Sequence[tuple[int | str, Tensor]]
) -> Iterator[dict[str, list[Tensor]]]:
    """The values of segments `[t]` of named rows by column, some at a time, in their order."""
    batch_tokens = _BATCHES_A_CALL * estimators[TOKEN_ENTROPIES].batch_tokens
    some: list[tuple[int | str, Tensor]] = []
    tokens = 0
    for place, (row, ids_T) in enumerate(segments):
        some.append((row, ids_T))
        tokens += len(ids_T)
        is_last = place + 1 == len(segments)
        if is_last or tokens + len(segments[place + 1][1]) > batch_tokens:
            names, ids = zip(*some)
            yield {
                column: estimator.measure(estimator.rows_of_ids(ids), names)
                for column, estimator in estimators.items()
            }
            some, tokens = [], 0
