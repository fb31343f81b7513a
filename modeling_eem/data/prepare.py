"""Text → rows on disk: a `datasets` folder with the splits `train` and `held_out`.

What is unusual:

* A corpus is cut into shards that depend on the corpus alone. A shard is the unit of parallel work, of output files,
  and of what a killed run repeats. A shard's file is written under another name, renamed, and only then marked as
  completed; the same command finds the markers and goes on.
* Rows do not cross shards. If a mode joins documents (`stream`, `pack`), a shard's last row is short; nothing is
  dropped.
* `dataset_dict.json` is written last: a folder that is not complete does not load.
"""

import hashlib
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from modeling_eem.data.arrow_files import (
    DATASET_FILE,
    RESULTS_FILE,
    SHARDS_FILE,
    TOKENIZER_FOLDER,
    UnusableCorpusError,
    count_shards,
    finished_shards,
    write_data_set,
)
from modeling_eem.data.fingerprint import FINGERPRINT_FILE, read_fingerprint, tokenizer_fingerprint
from modeling_eem.data.row_checksums import open_rows
from modeling_eem.data.row_options import Launch, RowOptions
from modeling_eem.data.rows import RowFormat
from modeling_eem.data.shards import Shard
from modeling_eem.files import LOCK_FILE, full_disk_named, locked, read_record, sha256, write_atomically

_POLL_SECONDS = 0.25
_MAX_DOCUMENTS = 2**31  # `document_ids` are int32


@dataclass(frozen=True)
class Progress:
    """How far the work has come.

    Attributes:
        shard_bytes: input bytes of all finished shards, including those of earlier starts.
        documents: documents in them.
        mb_per_second: UTF-8 megabytes (10⁶) of documents a second, in this start.
    """

    shard_bytes: int
    documents: int
    mb_per_second: float


def prepare_rows(
    shards: Sequence[Shard],
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    options: RowOptions,
    launch: Launch | None = None,
    report: Callable[[Progress], None] | None = None,
) -> dict[str, Any] | None:
    """Make the rows of a corpus, or the rest of them if an earlier start was interrupted.

    Args:
        shards: the corpus, from `plan_shards`.
        tokenizer: byte-level, with a BOS; it is saved beside the rows.
        output: the folder for the rows, `fingerprint.json` and `results.json`.
        options: which rows to make.
        launch: where to make them; None: on this machine, with all its cores.
        report: called from another thread, a few times a second.

    Returns:
        The content of `results.json`; None if the work went to Slurm jobs, the last of which completes the folder.

    Raises:
        ValueError: for a tokenizer that does not fit, an output that was made with something else, a corpus that
            cannot be read (nothing stays if no shard was finished), fills no row or is all held out, shards that
            failed on a cluster, or an output that another process is writing.
        OSError: for a full disk, with a file's name; finished shards are kept, and the same call resumes.
    """
    output, launch = Path(output).resolve(), launch or Launch()
    if launch.executor == "slurm" and len(str(output).split()) > 1:
        raise ValueError(f"{output}: datatrove's Slurm scripts take no path with a space: choose another --output.")
    made = _fingerprint(shards, tokenizer, options)
    _refuse_foreign(output)
    try:
        with full_disk_named(output), locked(output):
            _claim(output, made)
            if (output / DATASET_FILE).exists():
                open_rows(output)  # refuses rows that were damaged since
                return read_record(output / RESULTS_FILE, {"splits": dict, "rows": int})
            _set_up(output, shards, tokenizer)
            try:
                return _run(output, made, shards, launch, report)
            except ValueError as error:
                if launch.executor == "local" and not finished_shards(output):
                    raise UnusableCorpusError(str(error)) from error
                raise
    except UnusableCorpusError:
        shutil.rmtree(output)  # another try could use nothing of it
        raise


def _run(
    output: Path,
    made: dict[str, Any],
    shards: Sequence[Shard],
    launch: Launch,
    report: Callable[[Progress], None] | None,
) -> dict[str, Any] | None:
    from modeling_eem.data import pipeline  # needs datatrove; the rest of the package does not

    executor = pipeline.shard_executor(pipeline.pipeline_steps(output, made), output, len(shards), launch)
    if isinstance(executor, pipeline.SlurmPipelineExecutor):
        pipeline.slurm_finisher(output, launch, depends=executor).run()
        return None
    watch = _Watch(output, shards)
    with watch.reporting(report):
        executor.run()
    return write_data_set(output, watch.seconds, watch.look().mb_per_second)


class _Watch:
    """Reads the shards' progress from datatrove's files."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder, self._shards = folder, shards
        self._finished: set[int] = set()
        self._counts: Counter[str] = Counter()
        self._began = time.monotonic()
        self._before = 0  # done by earlier starts; the first look sees it
        self.look()
        self._before = self._counts["text_bytes"]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> Progress:
        new = finished_shards(self._folder) - self._finished
        self._finished |= new
        for counts in count_shards(self._folder, new).values():
            self._counts += counts
        return Progress(
            shard_bytes=sum(self._shards[shard].num_bytes for shard in self._finished),
            documents=self._counts["documents"],
            mb_per_second=(self._counts["text_bytes"] - self._before) / self.seconds / 1e6,
        )

    @contextmanager
    def reporting(self, report: Callable[[Progress], None] | None) -> Iterator[None]:
        """Call `report` now and then while the body runs, and once at its end."""
        if report is None:
            yield
            return
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_POLL_SECONDS):
                report(self.look())

        thread = threading.Thread(target=repeat, daemon=True)
        report(self.look())
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            report(self.look())


def _fingerprint(shards: Sequence[Shard], tokenizer: PreTrainedTokenizerBase, options: RowOptions) -> dict[str, Any]:
    """Everything that determines the rows; ValueError if there can be none."""
    RowFormat.from_tokenizer(tokenizer, options.max_length, options.add_eos)
    if options.padding != "none" and tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no padding token: use --padding none, and let the collator pad.")
    documents = sum(shard.num_documents for shard in shards)
    if documents >= _MAX_DOCUMENTS:
        raise ValueError(f"{documents:,} documents are more than int32 can number: prepare the corpus in parts.")
    if options.held_out >= documents:
        raise ValueError(f"held_out takes all {documents:,} documents: lower --held-out.")
    return {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **asdict(options),
        "files": list(dict.fromkeys(shard.span.path for shard in shards)),
        "documents": documents,
        "shards": len(shards),
        "shards_sha256": hashlib.sha256(_shard_lines(shards).encode()).hexdigest(),
        "files_sha256": _contents_sha256(shards),
    }


def _contents_sha256(shards: Sequence[Shard]) -> str:
    """Of the contents of all local files: an edit that keeps a file's size makes other rows. URLs are not read."""
    paths = dict.fromkeys(shard.span.path for shard in shards if "://" not in shard.span.path)
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256("".join(pool.map(sha256, paths)).encode()).hexdigest()


def _shard_lines(shards: Sequence[Shard]) -> str:
    return "".join(json.dumps(asdict(shard)) + "\n" for shard in shards)


def _refuse_foreign(output: Path) -> None:
    """ValueError for a file, or a folder with contents that prepare did not write."""
    if not output.exists() or (output / FINGERPRINT_FILE).exists():
        return
    if not output.is_dir() or any(path.name != LOCK_FILE for path in output.iterdir()):
        raise ValueError(f"{output} exists, and eem data prepare did not make it: choose another --output.")


def _claim(output: Path, made: dict[str, Any]) -> None:
    """Write the fingerprint; ValueError if the folder has a different one."""
    if (output / FINGERPRINT_FILE).exists():
        before = read_fingerprint(output)
        # A start that did not stop at an error had nothing to skip: one that skips may go on from it.
        same = {"errors"} if made["errors"] == "skip" else set()
        if other := [name for name in made if name not in same and before.get(name) != made[name]]:
            raise ValueError(
                f"{output} was started with other values of {', '.join(other)}: choose another --output, or remove it."
            )
    if not (output / DATASET_FILE).exists():
        write_atomically(output / FINGERPRINT_FILE, json.dumps(made, indent=2) + "\n")


def _set_up(output: Path, shards: Sequence[Shard], tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what the tasks read; the list of shards last, because a task of an earlier start may still be running."""
    if not (output / SHARDS_FILE).exists():
        try:
            tokenizer.save_pretrained(output / TOKENIZER_FOLDER)
        except Exception as error:  # the tokenizers library raises a bare Exception for every system error
            raise ValueError(f"the tokenizer cannot be written to {output}: {error}.") from error
        write_atomically(output / SHARDS_FILE, _shard_lines(shards))
