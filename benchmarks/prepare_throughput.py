"""How fast `eem-data prepare` is, beside the tokenizers library's own `encode_batch` on the same text and cores.

python benchmarks/prepare_throughput.py --data TEXT.parquet --output records

Every row mode is timed whole: worker processes started, text read, tokens made into rows, files written and the data
set completed; `encode_batch` gets the texts in memory and leaves its tokens there. All take turns, `--repeats` times;
the medians are compared. With `--workers 1` all work is done in this process, and seconds are those of its CPU time:
those ratios hold on a busy machine too. The exit code is 1 if a ratio is below the floor.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from transformers import AutoTokenizer

from modeling_eem.cli.console import ListOptionsCommand, one_line_errors
from modeling_eem.data import ROW_MODES, read_documents
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.report import Table
from modeling_eem.report.results import write_results

FLOOR = 0.8
REFERENCE = "tokenizers encode_batch"

app = typer.Typer(add_completion=False)


def table_of(speeds: dict[str, list[float]], title: str) -> Table:
    """Median MB/s of each program, and its ratio to the reference's."""
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return Table(
        columns=("program", "MB/s", "of encode_batch", "floor"),
        rows=[
            (name, median, median / medians[REFERENCE], None if name == REFERENCE else FLOOR)
            for name, median in medians.items()
        ],
        title=title,
        notes=["MB/s: UTF-8 megabytes (10⁶) of text a second, median."],
        formats={"MB/s": ".2f", "of encode_batch": ".2f", "floor": ".2f"},
    )


@app.command(
    cls=ListOptionsCommand,
    epilog="Example: python benchmarks/prepare_throughput.py --data TEXT.parquet --workers 1 --output records",
)
@one_line_errors()
def main(
    data: Annotated[list[str], typer.Option(help="Local files.")],
    tokenizer_folder: Annotated[Path, typer.Option("--tokenizer")] = Path("tokenizer"),
    max_length: Annotated[int, typer.Option(min=2)] = 1024,
    workers: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for prepare-throughput.md and .json.")] = None,
) -> None:
    """Time all row modes and encode_batch in turn."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    texts = [document.text for document in read_documents(data)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True

    def encode() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        backend.encode_batch(texts, add_special_tokens=False)

    def prepare(mode: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        options = RowOptions(rows=mode, max_length=max_length)
        shards = plan_shards(data, options.text_column, options.shard_bytes)
        with TemporaryDirectory() as folder:
            prepare_rows(shards, tokenizer, Path(folder) / "rows", options, Launch(workers=workers))

    programs: dict[str, Callable[[], None]] = {REFERENCE: encode}
    programs |= {f"eem-data prepare --rows {mode}": lambda mode=mode: prepare(mode) for mode in ROW_MODES}
    clock = time.process_time if workers == 1 else time.perf_counter
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    turns = [name for _ in range(repeats) for name in programs]
    for name in track(turns, "programs", console=Console(stderr=True)):
        began = clock()
        programs[name]()
        speeds[name].append(megabytes / (clock() - began))
    table = table_of(speeds, f"{megabytes:.1f} MB of text, {workers} workers, {clock.__name__}")
    Console().print(table)
    if output is not None:
        write_results(output, "prepare-throughput", [table], {"floor": FLOOR, "megabytes_per_second": speeds})
    if any(ratio < FLOOR for _, _, ratio, _ in table.rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
