"""eem data prepare: text into rows on disk."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eem.console import Steps, keeps, one_line_errors, progress_bar, waiting

if TYPE_CHECKING:
    from modeling_eem.report import Table

_ROWS, _WHERE = "Rows", "Where the work is done (changes nothing in the rows)"


@one_line_errors()
def prepare(
    data: Annotated[
        list[str],
        typer.Option(
            help=".txt, .jsonl and .json (also .gz, .zst), .parquet, folders of them, URLs such as "
            "hf://datasets/ORG/NAME/FOLDER, or fineweb-edu (its sample-10BT), finemath-4plus."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the rows.")],
    tokenizer: Annotated[
        str, typer.Option(help="Folder or Hub name of a byte-level tokenizer with a BOS; if not given, ours.")
    ] = "asset:tokenizer",
    rows: Annotated[
        Literal["windows", "pad", "stream", "pack"],
        typer.Option(
            help="windows: documents cut into rows; pad: the beginning of each document; stream: documents joined, "
            "BOS between them; pack: several separate windows in a row (causal models only).",
            rich_help_panel=_ROWS,
        ),
    ] = "windows",
    max_length: Annotated[int, typer.Option(help="Most tokens in a row, with BOS.", rich_help_panel=_ROWS)] = 1024,
    padding: Annotated[
        Literal["none", "left", "right"],
        typer.Option(help="Side on which rows are filled up; none: the collator does it.", rich_help_panel=_ROWS),
    ] = "none",
    add_eos: Annotated[bool, typer.Option("--add-eos", help="End documents with EOS.", rich_help_panel=_ROWS)] = False,
    held_out: Annotated[
        float,
        typer.Option(
            help="Hold out the first N documents (published: 50000); below 1: a share, chosen by a hash of the text.",
            rich_help_panel=_ROWS,
        ),
    ] = 0.01,
    text_column: Annotated[str, typer.Option(help="Column of .jsonl and .parquet.", rich_help_panel=_ROWS)] = "text",
    errors: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What to do at a document that cannot be read: not UTF-8, not JSON.", rich_help_panel=_ROWS),
    ] = "stop",
    shard_mb: Annotated[
        float, typer.Option(help="Input megabytes of one piece of work, which is one file.", rich_help_panel=_ROWS)
    ] = 8,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read the Hub's files over the network, without downloading them.")
    ] = False,
    executor: Annotated[Literal["local", "slurm", "ray"], typer.Option(rich_help_panel=_WHERE)] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Shards at a time; if not given, one a core.", rich_help_panel=_WHERE)
    ] = None,
    slurm_partition: Annotated[str | None, typer.Option(rich_help_panel=_WHERE)] = None,
    slurm_time: Annotated[
        str | None, typer.Option(help="Time limit of one shard: 01:00:00.", rich_help_panel=_WHERE)
    ] = None,
) -> None:
    """Turn text into rows of tokens: a folder that `datasets.load_from_disk` reads, with train and held-out splits.

    If it is interrupted, run the same command again: it goes on where it was. The rows are the same for any number of
    workers.

    Example: `eem data prepare --data train.parquet --tokenizer tokenizer --max-length 512 --output rows`
    """
    from rich.console import Console

    from modeling_eem.data.prepare import Progress, prepare_rows
    from modeling_eem.data.row_options import Launch, RowOptions
    from modeling_eem.data.shards import corpus_files, plan_shards
    from modeling_eem.files import asset
    from modeling_eem.loading import load_tokenizer

    console = Console(stderr=True)
    options = RowOptions(
        rows=rows,
        max_length=max_length,
        padding=padding,
        add_eos=add_eos,
        text_column=text_column,
        held_out=held_out,
        errors=errors,
        shard_bytes=_bytes(shard_mb),
    )
    launch = Launch(executor=executor, workers=workers, slurm_partition=slurm_partition, slurm_time=slurm_time)
    with waiting("looking through the text"):
        shards = plan_shards(corpus_files(data, streaming), text_column, options.shard_bytes)
        loaded = load_tokenizer(asset(tokenizer))
    with (
        keeps(lambda: f"finished shards are kept beside {output}; the same command goes on with the rest."),
        ExitStack() as shown,
    ):
        shown.enter_context(waiting("hashing the files"))
        steps: Steps | None = None

        def report(progress: Progress) -> None:
            nonlocal steps
            if steps is None:  # the files are hashed
                shown.close()
                megabytes = round(sum(shard.num_bytes for shard in shards) / 1e6)
                steps = shown.enter_context(progress_bar("making rows, MB", megabytes))
            note = f"{progress.documents:,} documents, {progress.mb_per_second:.1f} MB/s"
            steps.update(round(progress.shard_bytes / 1e6), note)

        results = prepare_rows(shards, loaded, output, options, launch, report)
    console.print(
        _table(results, output)
        if results
        else f"{len(shards)} shards were handed to Slurm; its last job completes {output}"
    )


def _bytes(shard_mb: float) -> int:
    if not 0 < shard_mb < math.inf:
        raise ValueError(f"--shard-mb must be a number above 0; got {shard_mb}.")
    return max(1, int(shard_mb * 1e6))


def _table(results: dict[str, Any], output: Path) -> Table:
    from modeling_eem.data.arrow_files import COUNTED
    from modeling_eem.report import Table

    speed = results["mb_per_second"]
    return Table(
        columns=("split", *COUNTED),
        rows=[(split, *(counts[name] for name in COUNTED)) for split, counts in results["splits"].items()],
        title=f"rows in {output}",
        notes=[] if speed is None else [f"{speed:.2f} MB of text a second, {results['seconds']:.1f} s"],
    )
