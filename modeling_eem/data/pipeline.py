"""The datatrove pipeline of `eem data prepare`: its reader, its row writer, and the executors; a shard is a task.

datatrove's own readers take whole files, and when they cannot decode a line they log it and go on. This project
therefore reads shards itself, with a `BaseDiskReader`. Executors, completion markers, statistics and logs are
datatrove's.
"""

import copy
import hashlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats
from numpy.typing import NDArray

from modeling_eem.data.arrow_files import (
    HELD_OUT,
    LOGS_FOLDER,
    SHARDS_FILE,
    TOKENIZER_FOLDER,
    TRAIN,
    columns_of,
    shard_file,
    write_data_set,
    write_rows,
)
from modeling_eem.data.documents import Span, read_span
from modeling_eem.data.fingerprint import tokenizer_fingerprint
from modeling_eem.data.row_options import Launch
from modeling_eem.data.rows import ROW_MODES, RowFormat
from modeling_eem.data.shards import Shard
from modeling_eem.data.text_encoding import PIECE_LENGTH, AlteredTextError, TextEncoder
from modeling_eem.loading import load_tokenizer

_ENCODED_TOGETHER = 1 << 20  # characters
_SECONDS_BETWEEN_LOOKS = 1.0
_KILLED = (
    "one of the processes was killed, often because memory ran out: start the same command with fewer --workers; "
    "finished shards are kept."
)


class ShardReader(BaseDiskReader):
    """The documents of one split in a task's shard; a document's `id` is its number in the corpus.

    Each split is read in its own pass, so no document waits in memory for the other split; a pass that cannot find
    any documents reads nothing.

    Args:
        folder: the rows' folder; its `shards.jsonl` has a line for each task.
        split: "train" or "held_out".
        held_out: from 1 on, the number of first documents to hold out; below 1, a share, chosen by a hash of the text.
        text_column: the column of `.jsonl` and `.parquet`.
        skip_errors: leave out documents that cannot be read, naming each in the task's log, instead of raising.

    Raises:
        ValueError: for a broken file, or a document that cannot be read.
    """

    type = "READER"

    def __init__(self, folder: Path, split: str, held_out: float, text_column: str, skip_errors: bool) -> None:
        self.name = split
        super().__init__(str(folder), paths_file=str(folder / SHARDS_FILE), add_file_path=False)
        self.split, self.held_out, self.text_column, self.skip_errors = split, held_out, text_column, skip_errors

    def read_file(self, filepath: str) -> Iterator[Document]:
        """The split's documents in a shard; `filepath` is the shard's line in `shards.jsonl`."""
        fields = json.loads(filepath)
        shard = Shard(**{**fields, "span": Span(**fields["span"])})
        first, last = shard.first_document, shard.first_document + shard.num_documents - 1
        if (self.held_out >= 1 or self.held_out == 0) and self.split not in (self._side(first), self._side(last)):
            return
        for number, text in enumerate(read_span(shard.span, self.text_column), start=first):
            if self._side(number, text) != self.split:
                continue
            if isinstance(text, ValueError):
                if not self.skip_errors:
                    raise ValueError(f"{text} Or leave such documents out: --errors skip.")
                logger.warning(f"document {number} is left out: {text}")
                self.stat_update("skipped")
            elif text:
                document = self.get_document_from_dict({"text": text, "id": str(number)}, shard.span.path, number)
                if document is not None:  # None for an empty text
                    yield document

    def _side(self, number: int, text: str | ValueError = "") -> str:
        if self.held_out >= 1:
            return HELD_OUT if number < self.held_out else TRAIN
        if isinstance(text, ValueError):
            return TRAIN
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return HELD_OUT if int.from_bytes(digest) < self.held_out * 2**64 else TRAIN


class RowWriter(PipelineStep):
    """Documents → tokens → rows → a shard's Arrow file; passes nothing on. Without documents there is no file.

    Args:
        folder: the rows' folder.
        split: "train" or "held_out".
        made: the folder's fingerprint, which says what rows to make.
    """

    type = "ROWS"

    def __init__(self, folder: Path, split: str, made: dict[str, Any]) -> None:
        self.name = split
        super().__init__()
        self.folder, self.made = folder, made

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Write the task's rows; counts go to datatrove's statistics."""
        # Tasks run in parallel: a tokenizer with its own threads would take the other tasks' cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encoder, row_format = _load_tokenizer(
            self.folder / TOKENIZER_FOLDER, self.made["tokenizer"], self.made["max_length"], self.made["add_eos"]
        )
        documents = self._encode(data, encoder)
        if (first := next(documents, None)) is None:
            return
        rows = ROW_MODES[self.made["rows"]](chain([first], documents), row_format)
        path = shard_file(self.folder, self.name, rank, world_size)
        for name, count in write_rows(path, rows, columns_of(self.made)).items():
            self.stat_update(name, value=count)

    def _encode(self, documents: Iterable[Document], encoder: TextEncoder) -> Iterator[tuple[int, NDArray]]:
        at_most = self.made["max_length"] - 1 if self.made["rows"] == "pad" else None
        for together in _group(documents):
            for document, ids in zip(together, self._ids(together, encoder, at_most)):
                if ids is not None:
                    yield int(document.id), ids

    def _ids(
        self, documents: Sequence[Document], encoder: TextEncoder, at_most: int | None
    ) -> Iterator[NDArray | None]:
        """The ids of each document; None for one that the tokenizer alters, if such documents are skipped."""
        texts = [document.text for document in documents]
        self.stat_update("text_bytes", value=sum(len(text.encode()) for text in texts))
        try:
            if len(texts) > 1:
                yield from encoder.encode_batch(texts)
                return
        except AlteredTextError:
            pass  # reported below, with the document's number
        for document in documents:
            try:
                yield encoder.encode(document.text, at_most)
            except AlteredTextError as error:
                if self.made["errors"] != "skip":
                    raise ValueError(f"document {document.id}: {error}") from error
                logger.warning(f"document {document.id} is left out: {error}")
                self.stat_update("skipped")
                self.stat_update("documents", value=-1)  # the reader has counted it
                self.stat_update("text_bytes", value=-len(document.text.encode()))
                yield None


class Finisher(PipelineStep):
    """The one task of the job that follows all shards on a Slurm cluster."""

    type, name = "FINISH", "data set"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:
        """Make the folder a data set."""
        write_data_set(self.folder)


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, logging to files only: the terminal is for the progress bar.

    datatrove's own `run` also starts a server process that hands out numbers to its workers. That process does not end
    when the command is killed, and nothing here needs its numbers.
    """

    def run(self) -> PipelineStats | None:
        """Run the remaining tasks; the first error ends all of them."""
        if not (ranks := self.get_incomplete_ranks()):
            return None
        self.save_executor_as_json()
        if self.workers == 1:
            stats = [copy.deepcopy(self)._run_for_rank(rank) for rank in ranks]  # steps count what they do
        else:
            # Imported once, then forked: PyTorch alone takes seconds to import.
            forks = multiprocess.get_context(  # pyright: ignore[reportAttributeAccessIssue] - set when it is imported
                "forkserver"
            )
            forks.set_forkserver_preload([__name__])
            with forks.Pool(self.workers) as pool:
                processes = forks.active_children()
                results, stats = pool.imap_unordered(self._run_for_rank, ranks), []
                while len(stats) < len(ranks):
                    try:
                        stats.append(results.next(timeout=_SECONDS_BETWEEN_LOOKS))
                    except forks.TimeoutError:
                        # The pool replaces a killed process, and would wait for its result for ever.
                        if not all(process.is_alive() for process in processes):
                            raise ValueError(_KILLED) from None
        total = sum(stats, start=PipelineStats())
        with self.logging_dir.open("stats.json", "wt") as file:
            total.save_to_disk(file)
        return total

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def pipeline_steps(folder: Path, made: dict[str, Any]) -> list[PipelineStep]:
    """Read and write held-out documents, then training documents."""
    return [
        step
        for split in (HELD_OUT, TRAIN)
        for step in (
            ShardReader(folder, split, made["held_out"], made["text_column"], made["errors"] == "skip"),
            RowWriter(folder, split, made),
        )
    ]


def shard_executor(steps: list[PipelineStep], folder: Path, tasks: int, launch: Launch) -> PipelineExecutor:
    """The executor that runs `steps` for all remaining shards."""
    logger.remove()  # the terminal is for the progress bar; datatrove's messages go to its files
    common = {"pipeline": steps, "tasks": tasks, "logging_dir": str(folder / LOGS_FOLDER)}
    workers = launch.workers or -1
    if launch.executor == "slurm":
        return SlurmPipelineExecutor(**common, **_slurm_options(launch), workers=workers)
    if launch.executor == "ray":
        return RayPipelineExecutor(**common, workers=workers)
    return QuietLocalExecutor(**common, workers=min(tasks, launch.workers or os.cpu_count() or 1))


def slurm_finisher(folder: Path, launch: Launch, depends: SlurmPipelineExecutor) -> SlurmPipelineExecutor:
    """The job that launches `depends`, and makes the folder a data set when all its shards are there."""
    logs = str(folder / LOGS_FOLDER / "finish")
    return SlurmPipelineExecutor([Finisher(folder)], 1, **_slurm_options(launch), logging_dir=logs, depends=depends)


def _slurm_options(launch: Launch) -> dict[str, Any]:
    return {
        "time": launch.slurm_time,
        "partition": launch.slurm_partition,
        "job_name": "eem-data-prepare",
        "qos": "",  # the cluster's default
        "env_command": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
    }


@lru_cache
def _load_tokenizer(folder: Path, sha256: str, max_length: int, add_eos: bool) -> tuple[TextEncoder, RowFormat]:
    """The encoder that turns texts into ids, and the rows' format; loaded once a process."""
    tokenizer = load_tokenizer(folder)
    if tokenizer_fingerprint(tokenizer) != sha256:
        raise ValueError(f"{folder} is not the tokenizer that these rows were begun with: remove them and start anew.")
    return TextEncoder(tokenizer), RowFormat.from_tokenizer(tokenizer, max_length, add_eos)


def _group(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups of documents of about a million characters; a document that is cut into pieces is a group by itself."""
    together: list[Document] = []
    characters = 0
    for document in documents:
        if together and (characters >= _ENCODED_TOGETHER or len(document.text) > PIECE_LENGTH):
            yield together
            together, characters = [], 0
        together.append(document)
        characters += len(document.text)
        if characters > PIECE_LENGTH and len(together) == 1:
            yield together
            together, characters = [], 0
    if together:
        yield together
