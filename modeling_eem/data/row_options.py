"""Which rows to make, and where to make them."""

import importlib.util
import math
import shutil
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

RowMode: TypeAlias = Literal["windows", "pad", "stream", "pack"]
Padding: TypeAlias = Literal["none", "left", "right"]
Errors: TypeAlias = Literal["stop", "skip"]
_LONGEST = 1 << 24  # tokens of a row: a batch of padded ones must fit in memory


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Everything that determines the rows, beside the text and the tokenizer.

    Attributes:
        rows: the row mode, see `modeling_eem.data.rows`.
        max_length: n, the most tokens in a row, BOS included.
        padding: the side on which rows are filled up to n; "none" leaves that to the collator.
        add_eos: whether EOS ends every document.
        text_column: the column of `.jsonl` and `.parquet`.
        held_out: a whole number holds out that many of the corpus's first documents (published: 50,000). A number
            below 1 holds out that share, chosen by a hash of the text: equal texts are on the same side.
        errors: "stop" at a document that cannot be read, or "skip" it and name it in the log.
        shard_bytes: the size of a shard.
        may_be_short: whether a corpus may hold less than one row. Text to measure may, text to train on may not.

    Raises:
        ValueError: for a value outside its range.
    """

    rows: RowMode = "windows"
    max_length: int = 1024
    padding: Padding = "none"
    add_eos: bool = False
    text_column: str = "text"
    held_out: float = 0.01
    errors: Errors = "stop"
    shard_bytes: int = 8_000_000
    may_be_short: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("rows", self.rows, get_args(RowMode)),
            ("padding", self.padding, get_args(Padding)),
            ("errors", self.errors, get_args(Errors)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        if not 2 <= self.max_length <= _LONGEST:
            raise ValueError(f"max_length must lie between 2 and {_LONGEST:,}, not {self.max_length}.")
        if not 0 <= self.held_out < math.inf or (self.held_out >= 1 and self.held_out != int(self.held_out)):
            raise ValueError(f"held_out must be a share below 1 or a number of documents, not {self.held_out}.")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, not {self.shard_bytes}.")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Where shards are made; it changes nothing in the rows.

    Attributes:
        executor: datatrove's: processes on this machine, jobs on a Slurm cluster, or tasks on a Ray cluster. All
            nodes of a cluster need the output folder, the files and this package at the same paths.
        workers: how many shards are made at the same time; None: one for each core, or as many as the cluster gives.
        slurm_partition, slurm_time: what `sbatch` asks for; "slurm" needs both. The time limit is for one shard.

    Raises:
        ValueError: for less than one worker, or a cluster that lacks what it needs.
    """

    executor: Literal["local", "slurm", "ray"] = "local"
    workers: int | None = None
    slurm_partition: str | None = None
    slurm_time: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}.")
        if self.executor == "slurm" and None in (self.slurm_partition, self.slurm_time):
            raise ValueError("slurm needs a partition and a time limit: --slurm-partition and --slurm-time.")
        if self.executor == "slurm" and shutil.which("sbatch") is None:
            raise ValueError("this machine has no sbatch: start on a login node of the Slurm cluster.")
        if self.executor == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError('ray is not installed: pip install "modeling-eem[ray]".')
