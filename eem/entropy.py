"""eem entropy: rows of text with an entropy for every token.

eem entropy --model runs/eem --method exact --data rows --output rows-entropy
torchrun --nproc_per_node 4 -m eem entropy --model runs/eem --method exact --data rows --output out
"""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eem.console import keeps, one_line_errors, progress_bar, quiet_loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from modeling_eem.data.segments import Scan
    from modeling_eem.entropy.base import EntropyEstimator
    from modeling_eem.report import Table

_METHODS = "exact, two_models, sliding, occlusion, gradient_input, causal, teacher, regression"
_OPTIONS, _TEXT = "Options of the methods", "Text that is no rows yet"


def entropy(
    model: Annotated[
        list[str], typer.Option(help="Folder or Hub name; two for two_models, longer first; of teacher the teacher.")
    ],
    method: Annotated[str, typer.Option(help=f"{_METHODS}.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="A folder of `eem data prepare` or another data set with input_ids; or .txt, .jsonl, .parquet files."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the rows with token_entropies.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="The rows' tokenizer, where neither their folder nor the model's has it.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="sliding, causal, teacher: tokens that keep a start.", rich_help_panel=_OPTIONS)
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="occlusion: l1, l2, max, cosine or loss.", rich_help_panel=_OPTIONS)
    ] = None,
    spread: Annotated[
        str | None, typer.Option(help="teacher: bytes or character_mean.", rich_help_panel=_OPTIONS)
    ] = None,
    alignment: Annotated[
        str | None, typer.Option(help="regression: prefix or token, as it was trained.", rich_help_panel=_OPTIONS)
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a forward pass; changes no value.", rich_help_panel=_OPTIONS)
    ] = 4096,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.", rich_help_panel=_OPTIONS)
    ] = "float32",
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a row; the model's context if not given.", rich_help_panel=_TEXT)
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of .jsonl and .parquet.", rich_help_panel=_TEXT)] = "text",
    max_hours: Annotated[float | None, typer.Option(help="Stop before the start if it would take longer.")] = None,
    rows_a_part: Annotated[
        int | None, typer.Option(help="Rows that a killed process repeats at most; a minute's if not given.", min=1)
    ] = None,
) -> None:
    """Measure the entropy of every token: a data set with `token_entropies` that `eem train` takes as `train_rows`.

    Killed, the same command goes on where it was. The rows keep their order for any number of processes under
    `torchrun` or `accelerate launch`.

    Example: `eem entropy --model runs/eem --method exact --data rows --output rows-entropy --max-hours 2`
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object
    from rich.console import Console

    from modeling_eem.data.segments import RowFolder, is_row_folder
    from modeling_eem.entropy.corpus_run import (
        EntropyRun,
        check_begun,
        measure_speed,
        part_rows,
        read_begun,
        run_identity,
    )
    from modeling_eem.entropy.loading import build_estimator, check_options, load_models
    from modeling_eem.report import provenance

    quiet_loading()
    given = {"stride": stride, "metric": metric, "spread": spread, "alignment": alignment}
    options = {name: value for name, value in given.items() if value is not None}
    # The others may wait for hours while the main process reads the rows.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    console = Console(stderr=True, quiet=not state.is_main_process)
    with one_line_errors():
        check_options(method, options)
        is_text = not (len(data) == 1 and is_row_folder(Path(data[0])))
        folder = output.parent / f".{output.name}.rows" if is_text else Path(data[0])
        known = _tokenizer(tokenizer, method, model[0], folder)
        models = load_models(method, model, dtype, state.device)
        estimator = build_estimator(method, models, known, batch_tokens=batch_tokens, **options)
        settled: list[Any] = [None]
        if state.is_main_process:
            with console.status("reading the rows"):
                begun = read_begun(output)
                if is_text:
                    _prepare(data, folder, known, max_length or _context(estimator), text_column)
                scan = _scan(folder, estimator, known)
                identity = run_identity(estimator, models, scan, {"dtype": dtype, **options})
                check_begun(output, begun, identity)
            settled = [(identity, begun)]
        broadcast_object_list(settled)
        identity, begun = settled[0]

        rows = RowFolder.open(folder)
        speed = measure_speed(estimator, rows)
        size = begun["rows_a_part"] if begun else rows_a_part or part_rows(rows, identity, speed, state.num_processes)
        run = EntropyRun(rows, output, estimator, size)
        tokens_left = identity["tokens"] * run.rows_left() / rows.num_rows
        speed = sum(gather_object([speed]))
        hours = tokens_left / speed / 3600
        console.print(f"{speed:,.0f} tokens a second; {tokens_left:,.0f} tokens are left: {hours:.2g} hours")
        if max_hours is not None and hours > max_hours:
            if not state.is_main_process:
                raise typer.Exit(2)
            if is_text and not begun:
                shutil.rmtree(folder)
            raise ValueError(
                f"it would take {hours:.2g} hours, more than --max-hours {max_hours:g}: raise that, give fewer rows, "
                "more processes, or a faster method."
            )
        if state.is_main_process:
            run.begin(identity, {"data": data, "models": model, "provenance": provenance()})
        state.wait_for_everyone()  # no part stands in a folder that does not say what it was begun with
        with (
            keeps(lambda: f"the parts that are done are kept in {output}; the same command goes on with the rest."),
            progress_bar("estimating rows", run.rows_left(), quiet=not state.is_main_process) as steps,
        ):
            run.work(state.process_index, state.num_processes, steps.advance)
        if state.is_main_process:
            run.finish(identity)
            if is_text:
                shutil.rmtree(folder)
            Console().print(_table(output))
    state.destroy_process_group()


def _tokenizer(given: str | None, method: str, model: str, rows: Path) -> PreTrainedTokenizerBase | None:
    """That of the rows; where it is not given the model's own, which must be the same, or beside a teacher theirs."""
    from transformers import AutoTokenizer

    from modeling_eem.data.arrow_files import TOKENIZER_FOLDER
    from modeling_eem.entropy.loading import own_tokenizer
    from modeling_eem.files import asset

    if given is not None:
        return AutoTokenizer.from_pretrained(asset(given))
    if method != "teacher":
        return own_tokenizer(model)
    return AutoTokenizer.from_pretrained(rows / TOKENIZER_FOLDER) if (rows / TOKENIZER_FOLDER).exists() else None


def _context(estimator: EntropyEstimator) -> int:
    if estimator.context is None:
        raise ValueError("no context of the model is counted in tokens of the rows: pass --max-length for text.")
    return estimator.context


def _prepare(
    data: list[str], folder: Path, tokenizer: PreTrainedTokenizerBase | None, max_length: int, text_column: str
) -> None:
    from modeling_eem.data.prepare import prepare_rows
    from modeling_eem.data.row_options import RowOptions
    from modeling_eem.data.shards import corpus_files, plan_shards

    if tokenizer is None:
        raise ValueError("text needs a tokenizer: pass --tokenizer.")
    options = RowOptions(max_length=max_length, text_column=text_column, held_out=0, may_be_short=True)
    prepare_rows(plan_shards(corpus_files(data), text_column, options.shard_bytes), tokenizer, folder, options)


def _scan(folder: Path, estimator: EntropyEstimator, tokenizer: PreTrainedTokenizerBase | None) -> Scan:
    """Read all rows once, and refuse those that the estimator would stop at."""
    from modeling_eem.data.fingerprint import check_fingerprint
    from modeling_eem.data.segments import RowFolder
    from modeling_eem.entropy.teacher import TeacherEntropy

    rows = RowFolder.open(folder)
    if rows.has_fingerprint and tokenizer is not None:
        check_fingerprint(folder, tokenizer)
    # What a teacher reads is text, in tokens of its own.
    return rows.scan((lambda *_: None) if isinstance(estimator, TeacherEntropy) else estimator.check_row)


def _table(output: Path) -> Table:
    from modeling_eem.data.arrow_files import RESULTS_FILE
    from modeling_eem.report import Table

    results = json.loads((output / RESULTS_FILE).read_text())
    mean = f"mean {results['unit']} a token"
    return Table(
        columns=("split", "rows", "tokens", "scored", mean),
        rows=[(split, *(counts[name] for name in counts)) for split, counts in results["splits"].items()],
        title=f"{results['method']} entropies in {output}",
    )
