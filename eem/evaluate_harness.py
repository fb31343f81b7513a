"""eem evaluate harness: lm-eval's benchmarks for several models, as one table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eem.console import EXTRAS, check_output, one_line_errors, progress_bar, quiet_loading, waiting
from eem.launch import is_first_process, num_processes

_TABLE = "table"  # `TABLE` of evaluation/harness_tasks.py, which takes seconds to import

if TYPE_CHECKING:
    from modeling_eem.report import Table

_LIBRARIES = ("modeling-eem", "lm-eval", "torch", "transformers", "datasets", "accelerate", "tokenizers")


@one_line_errors(is_shared=True)
def harness(
    model: Annotated[list[Path], typer.Option(help="Folders with a causal model or an EEM, and its tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder for harness.json and harness.md.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="`table` (the default): those of the benchmark table; or lm-eval's tasks, or YAML files."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of ORG/NAME folders with the tasks' data; if not given, the Hub."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at a time; changes no value.")] = 8,
    max_length: Annotated[int | None, typer.Option(help="Tokens of context for all models, if theirs differ.")] = None,
    limit: Annotated[int | None, typer.Option(help="Score only the first so many rows of each task.")] = None,
    bootstrap_iters: Annotated[
        int, typer.Option(help="Resamples for standard errors without a formula; 0: no standard errors.")
    ] = 200,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")] = "auto",
    cards: Annotated[
        bool, typer.Option("--cards", help="Also put the tables into the Results of each model folder's README.md.")
    ] = False,
) -> None:
    """Score models on lm-eval's tasks, with their own prompts and metrics.

    An entropy estimation model's encoder sees only the context, never the answer. Under `torchrun` or `accelerate
    launch` several processes share the work.

    Example: `eem evaluate harness --model runs/a runs/b --tasks table --data-dir data/hub --output results`
    """
    names = tasks or [_TABLE]
    if _TABLE in names or "ifeval" in names:
        _check_extra()
    check_output(output)
    is_main = is_first_process()
    with waiting("loading lm-eval and the tasks' data", quiet=not is_main):
        from accelerate import PartialState
        from rich.console import Console

        from modeling_eem.evaluation.harness import check_lengths, check_rows, open_models, score_models
        from modeling_eem.evaluation.harness_scores import HarnessOptions, ModelScores
        from modeling_eem.evaluation.harness_tables import summary_tables, task_table
        from modeling_eem.evaluation.harness_tasks import load_tasks
        from modeling_eem.files import folder_at_once
        from modeling_eem.report import add_to_card, check_card, provenance, write_results

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are counted in the table's notes
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)  # pages are cut in windows
        options = HarnessOptions(batch_size, max_length, limit, bootstrap_iters, dtype)
        quiet_loading()
        models = open_models(model, max_length)
        for folder in models if cards else []:
            check_card(folder.path)
        loaded = load_tasks(names, data_dir)
        check_rows(loaded, limit, num_processes())
        check_lengths(models, loaded, options)
    scores: list[ModelScores] = []

    def write(tables: Sequence[Table]) -> None:
        content = {
            "data": "the Hub" if data_dir is None else str(data_dir),
            "options": asdict(options),
            "models": [model_scores.to_json() for model_scores in scores],
            "tables": [json.loads(table.to_json()) for table in tables],
        }
        with folder_at_once(output) as results:
            write_results(results, "harness", tables, content, packages=_LIBRARIES)

    try:
        with _bar(len(models) * len(loaded), is_main) as (begin, advance):
            for model_scores in score_models(models, loaded, options, begin, advance):
                scores.append(model_scores)
    except (Exception, KeyboardInterrupt):
        if scores:
            write([task_table(scores)])
            typer.echo(f"{output / 'harness.md'} holds what was scored before that", err=True)
        raise
    if scores:
        is_table = _TABLE in names
        summary = summary_tables(scores, is_table, data_dir is not None, bootstrap_iters)
        write([*summary, task_table(scores)] if is_table else summary)
        for folder in models if cards else []:
            add_to_card(folder.path, "harness", summary, provenance(_LIBRARIES))
        Console().print(_upright(summary[0]) if is_table else summary[0], *summary[1:])
        Console().print(f"{output / 'harness.md'}, {output / 'harness.json'}")
    PartialState().destroy_process_group()


def _check_extra() -> None:
    """ModuleNotFoundError, before anything slow is imported, without the libraries of the task ifeval."""
    for library in (name for name, extra in EXTRAS.items() if extra == "harness"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"the task ifeval needs {library}", name=library)


def _upright(table: Table) -> Table:
    """The benchmark table with its models side by side, to fit a terminal's width."""
    columns = list(zip(table.columns, *table.rows))
    return type(table)(columns=columns[0], rows=columns[1:], title=table.title, notes=table.notes)


@contextmanager
def _bar(num_tasks: int, is_main: bool) -> Iterator[tuple[Callable[[str, str], None], Callable[[int], None]]]:
    """Progress over models and tasks, as two callbacks: a task begins; the model has read some rows."""
    with progress_bar("loading", num_tasks, quiet=not is_main) as steps:
        begun = rows = 0

        def begin(model: str, name: str) -> None:
            nonlocal begun, rows
            rows = 0
            steps.update(begun, "", f"{model}: {name}")
            begun += 1

        def advance(num_rows: int) -> None:
            nonlocal rows
            rows += num_rows
            steps.update(note=f"{rows:,} rows")

        yield begin, advance
        steps.update(begun)
