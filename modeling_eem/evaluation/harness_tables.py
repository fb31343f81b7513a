"""Tables of benchmarks: one row a model, the models' differences, every metric; with the notes that a reader needs."""

from collections.abc import Sequence

from modeling_eem.evaluation.harness_scores import ModelScores, Score, mean_score
from modeling_eem.evaluation.harness_tasks import COLUMNS
from modeling_eem.report import Cell, Table, readable


def benchmark_table(models: Sequence[ModelScores], is_offline: bool) -> Table:
    """The table of `COLUMNS`: one row a model, "value ± standard error", and the notes that it needs."""
    rows: list[list[Cell]] = []
    for model in models:
        cells: list[Cell] = [model.name]
        for column in COLUMNS:
            scores = [model.tasks[task].metrics[column.metric_of(task)] for task in column.tasks(is_offline)]
            mark = "*" if any(_saw_bos_alone(model, task) for task in column.tasks(is_offline)) else ""
            cells.append(_text(mean_score(scores)) + mark)
        rows.append(cells)
    counts = [sum(models[0].tasks[task].num_rows for task in column.tasks(is_offline)) for column in COLUMNS]
    rows.append(["rows scored", *(f"{count:,}" for count in counts)])
    return Table(
        columns=("model", *(column.name for column in COLUMNS)),
        rows=rows,
        title="Benchmarks",
        notes=[*_table_notes(models, is_offline), *_length_notes(models)],
    )


def differences_table(models: Sequence[ModelScores], is_table: bool, is_offline: bool, resamples: int) -> Table:
    """Each later model's differences from the first, with paired standard errors.

    Args:
        is_table: compare the columns of `COLUMNS`, and every metric of tasks in no column; otherwise every metric.
        resamples: draws of the bootstrap, for metrics without a formula.
    """
    first, *others = models
    lines: dict[str, list[tuple[str, str]]] = {}
    if is_table:
        lines = {c.name: [(task, c.metric_of(task)) for task in c.tasks(is_offline)] for c in COLUMNS}
    in_columns = {task for parts in lines.values() for task, _ in parts}
    for task, scores in first.tasks.items():
        if task not in in_columns:
            lines |= {f"{task} {_plain(metric)}": [(task, metric)] for metric in scores.metrics}
    rows = []
    for other in others:
        for name, parts in lines.items():
            pairs = [[model.tasks[task].metrics[metric] for task, metric in parts] for model in (other, first)]
            apart = mean_score([score.difference(base, resamples) for score, base in zip(*pairs)])
            in_errors = apart.value / apart.standard_error if apart.standard_error else None
            mark = "*" if any(_saw_bos_alone(model, task) for model in (other, first) for task, _ in parts) else ""
            value = mean_score(pairs[0]).value
            rows.append((other.name, name + mark, value, apart.value, apart.standard_error, in_errors))
    less = f"less {first.name}"
    notes = []
    if resamples:
        notes = [
            "The standard error is of the difference, row by row: both models answer the same rows. Where a metric is "
            f"no mean of rows (mcc, f1, perplexity), by {resamples:,} draws of rows, the same for both; bits per byte "
            "by the linearised ratio, over pages.",
            "Of differences by chance alone about one in twenty is two standard errors or more from 0.",
        ]
    if any("*" in row[1] for row in rows):
        notes.append("With * an entropy estimation model's encoder was shown BOS alone.")
    if is_table:
        notes.append("Wikitext BPB is better when it is lower, the others when they are higher.")
    return Table(
        columns=("model", "benchmark", "score", less, "its standard error", "in standard errors"),
        rows=rows,
        title="Differences",
        notes=notes,
        formats={"score": ".4f", less: "+.4f", "its standard error": ".4f", "in standard errors": "+z.1f"},
    )


def summary_tables(models: Sequence[ModelScores], is_table: bool, is_offline: bool, resamples: int) -> list[Table]:
    """The tables of a card: `COLUMNS` or else every metric, and for several models their differences."""
    tables = [benchmark_table(models, is_offline) if is_table else task_table(models)]
    if len(models) > 1:
        tables.append(differences_table(models, is_table, is_offline, resamples))
    return tables


def task_table(models: Sequence[ModelScores]) -> Table:
    """One table row for every metric of every task; a task is marked where an encoder was shown BOS alone."""
    shots = [f"{task} {scores.num_fewshot}" for task, scores in models[0].tasks.items() if scores.num_fewshot]
    told = f"Solved examples in each prompt: {', '.join(shots)}; none in the others'." if shots else ""
    return Table(
        columns=("model", "task", "metric", "value", "standard error", "rows"),
        rows=[
            (
                model.name,
                task + ("*" if _saw_bos_alone(model, task) else ""),
                _plain(metric),
                score.value,
                score.standard_error,
                scores.num_rows,
            )
            for model in models
            for task, scores in model.tasks.items()
            for metric, score in scores.metrics.items()
        ],
        title="All metrics",
        notes=[*([told] if told else []), *_encoder_notes(models), *_length_notes(models)],
        formats={"value": ".4f", "standard error": ".4f"},
    )


def _plain(metric: str) -> str:
    """lm-eval's `metric,filter`, where a filter says something."""
    return metric.removesuffix(",none")


def _saw_bos_alone(model: ModelScores, task: str) -> bool:
    """Whether a model's encoder had no context to read: that of an EEM, in front of a page."""
    return model.model_type == "eem" and model.tasks[task].is_rolling


def _text(score: Score) -> str:
    error = "" if score.standard_error is None else f" ± {readable(score.standard_error, '.4f')}"
    return readable(score.value, ".4f") + error


def _table_notes(models: Sequence[ModelScores], is_offline: bool) -> list[str]:
    glue = next(column for column in COLUMNS if column.name == "GLUE")
    notes = [
        "± one standard error. acc, but for HellaSwag acc_norm, TruthfulQA mc2, IFEval prompt_level_strict, GSM8K "
        "strict-match, CoLA mcc.",
        "Wikitext BPB: bits of the detokenised text over the bytes of the raw page, as lm-eval has it; compare it "
        "with other models' only. Its standard error is over pages.",
        f"GLUE: the mean of {', '.join(glue.tasks(is_offline))}.",
    ]
    if is_offline:
        notes[-1] += f" {' and '.join(glue.online_only)} are left out: their offline copies hold training rows."
    return [*notes, *_encoder_notes(models)]


def _encoder_notes(models: Sequence[ModelScores]) -> list[str]:
    if all(model.model_type != "eem" for model in models):
        return []
    return [
        "An entropy estimation model's encoder was shown the context alone, and with * BOS alone. Its code's bits "
        "are not counted."
    ]


def _length_notes(models: Sequence[ModelScores]) -> list[str]:
    notes: dict[str, list[str]] = {}  # a note → the models that it is true of
    for model in models:
        cut = [f"{task} {s.truncated_prompts}" for task, s in model.tasks.items() if s.truncated_prompts]
        short = [f"{task} {s.shortened_answers}" for task, s in model.tasks.items() if s.shortened_answers]
        texts = []
        if cut:
            texts.append(
                f"of a context of {model.max_length} tokens, prompts that lost their beginning: {', '.join(cut)}."
            )
        if short:
            texts.append(
                f"prompts answered in at most {model.max_length // 2} tokens, half the context, where the task gives "
                f"more: {', '.join(short)}."
            )
        for text in texts:
            notes.setdefault(text, []).append(model.name)
    partial = [
        f"{task} {s.num_rows} of {s.num_rows_available}"
        for task, s in models[0].tasks.items()
        if s.num_rows < s.num_rows_available
    ]
    told = [f"{', '.join(names)}: {text}" for text, names in notes.items()]
    return told + ([f"Only the first rows were scored of: {', '.join(partial)}."] if partial else [])
