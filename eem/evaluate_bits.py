"""eem evaluate bits: held-out code length of models beside general-purpose compressors."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from eem.console import check_output, one_line_errors, progress_bar, quiet_loading


@one_line_errors()
def bits(
    model: Annotated[
        list[Path], typer.Option(help="Folders with a model and its tokenizer; differences are from the first.")
    ],
    data: Annotated[
        list[Path], typer.Option(help="Held-out .txt, .jsonl (.gz) or .parquet files, or a folder of prepared rows.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for bits.md, bits.json and documents.csv.")],
    baseline: Annotated[list[Path] | None, typer.Option(help="Folders of models to compare with.")] = None,
    rows: Annotated[
        Literal["windows", "pad", "full", "stream"],
        typer.Option(
            help="windows: documents cut into rows; pad: the beginning of each document; full: rows of pad that fill "
            "the context; stream: documents joined, BOS between them."
        ),
    ] = "windows",
    context: Annotated[int | None, typer.Option(help="Most tokens in a row, if the models' contexts differ.")] = None,
    code_dtype: Annotated[
        str | None, typer.Option(help="Format that codes are stored in; if not given, the checkpoint's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at a time; changes no value.", min=1)] = 16,
) -> None:
    """Count the bits that models need for held-out text, including the bits of their codes.

    Example: `eem evaluate bits --model runs/eem --baseline runs/causal --data held_out.jsonl --output results`
    """
    from rich.console import Console

    from modeling_eem.evaluation.bits_table import (
        bits_table,
        compressors_table,
        differences_table,
        documents_csv,
        measure,
        measure_compressors,
    )
    from modeling_eem.evaluation.code_length import code_bits_of
    from modeling_eem.evaluation.held_out_text import held_out_rows, row_bytes
    from modeling_eem.evaluation.scored_models import common_context, load_checkpoints
    from modeling_eem.files import folder_at_once, write_atomically
    from modeling_eem.report import write_results

    check_output(output)
    quiet_loading()
    console = Console()
    checkpoints = load_checkpoints([*model, *(baseline or [])], code_dtype)
    max_length = common_context(checkpoints, context)
    for checkpoint in checkpoints:
        code_bits_of(checkpoint.config)  # refuses a code without a format now, not after the first model
    scored = [
        held_out_rows(data, checkpoint.tokenizer, checkpoint.config, rows, max_length) for checkpoint in checkpoints
    ]
    with progress_bar("reading rows", sum(map(len, scored))) as steps:
        models = [
            measure(checkpoint, own_rows, max_length, batch_size, steps.advance)
            for checkpoint, own_rows in zip(checkpoints, scored)
        ]
    with progress_bar("compressing rows", len(scored[0]) + 1) as steps:
        compressors = measure_compressors(row_bytes(scored[0], checkpoints[0].tokenizer), steps.advance)

    tables = [bits_table(models, f"{rows} of up to {max_length:,} tokens")]
    tables += [differences_table(models)] if len(models) > 1 else []
    tables += [compressors_table(compressors)]
    console.print(*tables)
    content = {
        "rows": rows,
        "max_length": max_length,
        "data": [str(path) for path in data],
        "models": [measured.to_json(models[0]) for measured in models],
        "compressors": [asdict(compressor) for compressor in compressors],
    }
    with folder_at_once(output) as folder:
        write_atomically(folder / "documents.csv", documents_csv(models))
        write_results(folder, "bits", tables, content)
