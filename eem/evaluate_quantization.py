"""eem evaluate quantization: the cost of storing codes in few bits, and which layers are sensitive to rounding."""

from pathlib import Path
from typing import Annotated

import typer

from eem.console import check_output, one_line_errors, progress_bar, quiet_loading

_HISTOGRAM_WINDOWS = 10


@one_line_errors()
def quantization(
    model: Annotated[list[Path], typer.Option(help="Folders with a model that has a code, and its tokenizer.")],
    data: Annotated[
        list[Path], typer.Option(help="Held-out .txt, .jsonl (.gz) or .parquet files, or a folder of prepared rows.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for quantization.md, quantization.json and the plots.")],
    context: Annotated[int | None, typer.Option(help="Most tokens in a row, if the models' contexts differ.")] = None,
    sweep_rows: Annotated[int, typer.Option(help="Rows that the layer sweep reads, evenly spread.", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows at a time; changes no value.", min=1)] = 16,
) -> None:
    """Store codes in every format, and round one layer at a time; report the loss and the bits of each.

    Example: `eem evaluate quantization --model runs/plain runs/noisy --data held_out.jsonl --output results`
    """
    from rich.console import Console

    from modeling_eem.evaluation.code_length import row_codes
    from modeling_eem.evaluation.held_out_text import held_out_rows
    from modeling_eem.evaluation.quantization import (
        SWEEP_FORMATS,
        SWEEP_PARTS,
        code_histogram,
        evenly_spread,
        measure_formats,
        number_of_formats,
        sweep_layers,
        swept_layers,
        unrounded_codes,
    )
    from modeling_eem.evaluation.quantization_report import (
        comparison_table,
        draw,
        formats_table,
        sweep_table,
        to_json,
    )
    from modeling_eem.evaluation.scored_models import common_context, load_checkpoints
    from modeling_eem.files import folder_at_once
    from modeling_eem.report import write_results
    from modeling_eem.report.plots import COLOURS

    check_output(output)
    quiet_loading()
    console = Console()
    if len(model) > len(COLOURS):
        raise ValueError(f"a plot holds {len(COLOURS)} models, not {len(model)}: name fewer.")
    checkpoints = load_checkpoints(model)
    for checkpoint in checkpoints:
        if not checkpoint.code_size:
            raise ValueError(f"{checkpoint.name} is a causal model and has no code: leave it out.")
    max_length = common_context(checkpoints, context)
    scored = [
        held_out_rows(data, checkpoint.tokenizer, checkpoint.config, "windows", max_length)
        for checkpoint in checkpoints
    ]
    formats, sweeps, histograms = {}, {}, {}
    for checkpoint, rows in zip(checkpoints, scored):
        loaded, collator = checkpoint.model, checkpoint.collator(max_length)
        some_rows = evenly_spread(rows, sweep_rows)
        passes = 1 + len(SWEEP_PARTS) * len(SWEEP_FORMATS) * len(swept_layers(loaded))
        total = number_of_formats(loaded) * len(rows) + passes * len(some_rows)
        with progress_bar(f"rounding {checkpoint.name}", total) as steps:
            formats[checkpoint.name] = measure_formats(loaded, rows, collator, batch_size, steps.advance)
            sweeps[checkpoint.name] = sweep_layers(loaded, some_rows, collator, batch_size, steps.advance)
        full = [row for row in rows if len(row["input_ids"]) == max_length] or rows
        with unrounded_codes(loaded):
            codes_NP = row_codes(loaded, full[:_HISTOGRAM_WINDOWS], collator)
        histograms[checkpoint.name] = code_histogram(codes_NP)

    tables = [formats_table(formats)]
    tables += [comparison_table(formats)] if len(formats) > 1 else []
    tables += [sweep_table(sweeps)]
    console.print(*tables)
    content = {
        "data": [str(path) for path in data],
        "rows": len(scored[0]),
        "max_length": max_length,
        "sweep_rows": min(sweep_rows, len(scored[0])),
        "models": to_json(formats, sweeps, histograms),
    }
    with folder_at_once(output) as folder:
        figures = draw(folder, formats, sweeps, histograms)
        write_results(folder, "quantization", tables, content, figures)
