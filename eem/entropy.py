"""eem entropy: rows of text with an entropy for every token.

eem entropy --model runs/eem --method exact --data rows --output rows-entropy
torchrun --nproc_per_node 4 -m eem entropy --model runs/eem --method exact --data rows --output out
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eem.console import keeps, one_line_errors, progress_bar, quiet_loading, waiting
from eem.launch import Arrival
from eem.method_options import METHODS, with_method_options

if TYPE_CHECKING:
    from modeling_eem.report import Table

_OPTIONS, _TEXT = "Options of the methods", "For text that is not rows yet"


@with_method_options(_OPTIONS)
def entropy(
    model: Annotated[
        list[str],
        typer.Option(
            help="Folder or Hub name; for two_models two, longer first; for teacher the teacher. Several checkpoints, "
            "oldest first, give a column each."
        ),
    ],
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="A folder of `eem data prepare` or another data set with input_ids; or .txt, .jsonl, .parquet files."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the rows with token_entropies.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="The rows' tokenizer, if neither their folder nor the model's has it.")
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a forward pass; changes no value.", rich_help_panel=_OPTIONS)
    ] = 4096,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Dtype of the weights.", rich_help_panel=_OPTIONS)
    ] = "float32",
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a row; if not given, the model's context. A method that slides needs more.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of .jsonl and .parquet; if not given, text.", rich_help_panel=_TEXT)
    ] = None,
    errors: Annotated[
        Literal["stop", "skip"] | None,
        typer.Option(help="What to do at a document that cannot be read; if not given, stop.", rich_help_panel=_TEXT),
    ] = None,
    max_hours: Annotated[float | None, typer.Option(help="Refuse to start if it would take longer.")] = None,
    rows_a_part: Annotated[
        int | None, typer.Option(help="Most rows that a killed process repeats; if not given, a minute's.", min=1)
    ] = None,
    **options: Any,
) -> None:
    """Measure the entropy of every token, and write rows with `token_entropies`, the `train_rows` of `eem train`.

    If it is killed, run the same command again: it goes on where it was. The rows keep their order for any number of
    processes under `torchrun` or `accelerate launch`.

    Example: `eem entropy --model runs/eem --method exact --data rows --output rows-entropy --max-hours 2`
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object
    from rich.console import Console

    from modeling_eem.data.segments import RowFolder
    from modeling_eem.entropy import corpus_run
    from modeling_eem.entropy.corpus_source import Source, TextOptions
    from modeling_eem.entropy.registry import build_stages, check_options, check_tokenizers, load_models
    from modeling_eem.files import asset
    from modeling_eem.report import provenance
    from modeling_eem.report.numbers import duration

    quiet_loading()
    options = {name: value for name, value in options.items() if value is not None}
    # The other processes may wait for hours while the main one reads the rows.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    assert state.device is not None  # until `state` is destroyed
    is_main = state.is_main_process
    console = Console(stderr=True, quiet=not is_main)
    with one_line_errors(is_shared=True), corpus_run.claimed(output) if is_main else nullcontext() as begun:
        check_options(method, options)
        source = Source.from_data(data, output, TextOptions(max_length, text_column, errors))
        known = source.tokenizer(None if tokenizer is None else asset(tokenizer), method, model[0])
        with waiting("loading the models", quiet=not is_main):
            models = load_models(method, model, dtype, state.device)
        estimators = build_stages(method, models, known, batch_tokens=batch_tokens, **options)
        check_tokenizers(estimators.values(), known, model)
        settled: list[Any] = [None]
        if is_main:
            is_half_made = bool(begun) and source.folder.exists()
            try:
                with waiting("reading the rows"):
                    source.prepare(estimators.values(), known, is_half_made)
                    scan = source.scan(estimators.values(), known)
                identity = corpus_run.run_identity(estimators, models, scan, {"dtype": dtype, **options}, known)
                corpus_run.check_begun(output, begun, identity)
            except ValueError:
                if not is_half_made:
                    source.remove()
                raise
            settled = [(identity, begun)]
        broadcast_object_list(settled)
        identity, begun = settled[0]

        rows = RowFolder.open(source.folder)
        with waiting("measuring the speed", quiet=not is_main):
            speeds = gather_object([corpus_run.measure_speed(estimators, rows)])
        # Each process measures another speed, but all must cut the rows at the same places: the slowest decides.
        fresh = rows_a_part or corpus_run.part_rows(rows, identity, min(speeds), state.num_processes)
        run = corpus_run.EntropyRun(rows, output, estimators, begun["rows_a_part"] if begun else fresh)
        tokens_left = identity["tokens"] * run.rows_left() / rows.num_rows
        speed = sum(speeds)
        seconds = tokens_left / speed
        console.print(f"{speed:,.0f} tokens a second; {tokens_left:,.0f} tokens are left: {duration(seconds)}")
        if max_hours is not None and seconds > 3600 * max_hours:
            if is_main and not begun:
                source.remove()
            raise ValueError(
                f"it would take {duration(seconds)}, more than --max-hours {max_hours:g}: raise that, or use "
                "fewer rows, more processes or a faster method."
            )
        if is_main:
            run.begin(identity, {"data": data, "models": model, "provenance": provenance()})
        state.wait_for_everyone()  # the folder's record must be there before any part
        with (
            keeps(lambda: f"finished parts are kept in {output}; the same command goes on with the rest."),
            progress_bar("estimating rows", run.rows_left(), quiet=not is_main) as steps,
        ):
            awaited = run.make(state.process_index, state.num_processes, steps.advance)
            others = Arrival()
            corpus_run.watch(awaited, others.is_over, steps.advance)
            others.wait()
        if is_main:
            source.keep_left_out(output)
            run.write_data_set(identity, source.counts())
            source.remove()
            Console().print(_table(output))
        state.wait_for_everyone()  # no process may succeed if the main one fails
    state.destroy_process_group()


def _table(output: Path) -> Table:
    from modeling_eem.data.arrow_files import RESULTS_FILE
    from modeling_eem.entropy.corpus_source import LEFT_OUT_FILE
    from modeling_eem.report import Table

    results = json.loads((output / RESULTS_FILE).read_text())
    mean, skipped = f"mean {results['unit']} a token", results.get("skipped")
    names = ("rows", "tokens", "scored", "mean")
    return Table(
        columns=("split", *names[:-1], mean),
        rows=[(split, *(counts[name] for name in names)) for split, counts in results["splits"].items()],
        title=f"{results['method']} entropies in {output}",
        notes=[f"documents left out: {skipped:,}; {LEFT_OUT_FILE} names each"] if skipped else [],
    )
