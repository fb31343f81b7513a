"""Benchmarks: several models through lm-eval's tasks, as one table with what a reader must know about it."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.task import Task
from lm_eval.models.utils import resolve_max_length
from lm_eval.tasks import TaskManager
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig

from modeling_eem.evaluation.harness_models import EEM_TYPES, CausalHarnessModel, EEMHarnessModel
from modeling_eem.evaluation.harness_tasks import COLUMNS
from modeling_eem.report import Cell, Table, provenance

_LIBRARIES = ("modeling-eem", "lm-eval", "torch", "transformers", "datasets", "accelerate", "tokenizers")


@dataclass(frozen=True)
class Score:
    """A metric's value and its standard error; None where lm-eval has none, or with one row."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class TaskScores:
    """What a model scored on a task.

    Attributes:
        version: of the task, as its YAML has it.
        num_fewshot: solved examples in each prompt.
        num_rows: rows that were scored.
        num_rows_available: rows that the data holds.
        truncated_prompts: different prompts that lost their beginning, being too long for the context.
        shortened_answers: different prompts with less room for an answer than the task asks for.
        metrics: `metric,filter` → score.
    """

    version: str
    num_fewshot: int
    num_rows: int
    num_rows_available: int
    truncated_prompts: int
    shortened_answers: int
    metrics: dict[str, Score]


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that `open_models` found fit to be scored."""

    name: str
    path: Path
    config: PreTrainedConfig = field(repr=False)

    @property
    def is_eem(self) -> bool:
        return self.config.model_type == "eem"


@dataclass(frozen=True)
class ModelScores:
    """A row of the table.

    Attributes:
        adapter: the lm-eval model it went through.
        max_length: tokens of context that it was given.
        dtype: of its weights.

    Raises:
        ValueError: an entropy estimation model that did not go through `EEMHarnessModel`: its encoder saw what was
            scored, which is no score.
    """

    name: str
    model_type: str
    adapter: str
    num_parameters: int
    max_length: int
    dtype: str
    tasks: dict[str, TaskScores]

    def __post_init__(self) -> None:
        if self.model_type in EEM_TYPES and self.adapter != EEMHarnessModel.__name__:
            raise ValueError(
                f"{self.name} is an entropy estimation model and was scored through {self.adapter}, where its encoder "
                f"sees what is scored: score it through {EEMHarnessModel.__name__}."
            )


@dataclass(frozen=True)
class HarnessOptions:
    """How models are scored.

    Attributes:
        batch_size: rows at a time; changes no value.
        max_length: tokens of context, for models whose contexts differ; None takes the models' own.
        limit: first rows of each task to score; None scores all.
        bootstrap_iters: resamples for the standard errors that have no formula (mcc, f1, perplexity); 0 leaves all
            standard errors out.
        dtype: of the weights: a name of PyTorch, or "auto" for the checkpoint's own.
    """

    batch_size: int = 8
    max_length: int | None = None
    limit: int | None = None
    bootstrap_iters: int = 200
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "max_length": 2, "limit": 1, "bootstrap_iters": 0}.items():
            value = asdict(self)[name]
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}.")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, not {self.dtype!r}.")


def open_models(paths: Sequence[Path], max_length: int | None = None) -> list[ModelFolder]:
    """Check that checkpoints can be scored beside each other; no weights are read.

    Raises:
        ValueError: a folder without config, weights or tokenizer; a model that is no causal language model; a
            tokenizer with more tokens than the model, or without BOS and EOS; contexts that differ, or are shorter
            than `max_length`.
    """
    names = [path.name for path in paths]
    models = [
        ModelFolder(path.name if names.count(path.name) == 1 else str(path), path, _checked_config(path))
        for path in dict.fromkeys(paths)
    ]
    lengths = {model.name: resolve_max_length(model.config) for model in models}
    told = ", ".join(f"{name} {length}" for name, length in lengths.items())
    if max_length is None and len(set(lengths.values())) > 1:
        raise ValueError(
            f"the models' contexts differ ({told}), so their scores do not compare: give all of them the same with "
            f"--max-length {min(lengths.values())}."
        )
    if max_length is not None and max_length > min(lengths.values()):
        raise ValueError(f"--max-length {max_length} is longer than a model's context ({told}).")
    return models


def _checked_config(path: Path) -> PreTrainedConfig:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no model: name a folder that save_pretrained wrote, with a config.json.")
    config = AutoConfig.from_pretrained(path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{path} holds a {config.model_type!r}, which is no causal language model.")
    if not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise ValueError(f"{path} holds no weights: no file *.safetensors or *.bin.")
    if not (path / "tokenizer_config.json").is_file():
        raise ValueError(f"{path} holds no tokenizer: put it there with tokenizer.save_pretrained({str(path)!r}).")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: it is another's."
        )
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(
            f"{path}: the tokenizer needs a BOS and an EOS: set tokenizer.bos_token, tokenizer.eos_token."
        )
    return config


def score_models(
    models: Sequence[ModelFolder],
    tasks: dict[str, Task],
    options: HarnessOptions,
    begin: Callable[[str, str], None],
    advance: Callable[[int], None],
) -> list[ModelScores]:
    """All models on all tasks; empty on every process but the first.

    Args:
        begin: is told the model and the task before each.
        advance: is told how many rows have been through the model since it was last told.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"  # else each bootstrap forks this process, models and threads included
    scores = []
    for folder in models:
        adapter = EEMHarnessModel if folder.is_eem else CausalHarnessModel
        model = adapter(
            str(folder.path),
            advance=advance,
            batch_size=options.batch_size,
            max_length=options.max_length,
            dtype=options.dtype,
        )
        scored = {}
        for name, task in tasks.items():
            begin(folder.name, name)
            if (task_scores := score_task(model, task, options)) is not None:
                scored[name] = task_scores
        if model.rank == 0:
            scores.append(
                ModelScores(
                    name=folder.name,
                    model_type=folder.config.model_type,
                    adapter=adapter.__name__,
                    num_parameters=model.model.num_parameters(),
                    max_length=model.max_length,
                    dtype=str(model.model.dtype).removeprefix("torch."),
                    tasks=scored,
                )
            )
    return scores


def score_task(model: CausalHarnessModel, task: Task, options: HarnessOptions) -> TaskScores | None:
    """One task; None on every process but the first."""
    model.start()
    is_rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
    results = simple_evaluate(
        model=model,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        limit=options.limit,
        bootstrap_iters=options.bootstrap_iters,
        log_samples=is_rolling,
    )
    counted = model.gather_object((model.truncated, model.shortened))
    if results is None:
        return None
    name = task.config.task
    metrics = dict(_scores(results["results"][name]))
    if is_rolling and options.bootstrap_iters and "bits_per_byte,none" in metrics:
        pairs = [sample["bits_per_byte"] for sample in results["samples"][name]]
        error = ratio_standard_error([-nats / math.log(2) for nats, _ in pairs], [size for _, size in pairs])
        metrics["bits_per_byte,none"] = Score(metrics["bits_per_byte,none"].value, error)
    truncated, shortened = (set().union(*sets) for sets in zip(*counted))
    return TaskScores(
        version=str(results["versions"][name]),
        num_fewshot=results["n-shot"][name],
        num_rows=results["n-samples"][name]["effective"],
        num_rows_available=results["n-samples"][name]["original"],
        truncated_prompts=len(truncated),
        shortened_answers=len(shortened),
        metrics=metrics,
    )


def _scores(results: dict[str, Any]) -> Iterator[tuple[str, Score]]:
    """lm-eval's flat `metric,filter` and `metric_stderr,filter`, joined."""
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = results.get(f"{metric}_stderr,{chosen}")
            yield key, Score(float(value), float(error) if isinstance(error, int | float) else None)


def ratio_standard_error(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Standard error of `Σ a / Σ b` over n independent pairs: `sqrt(n / (n - 1) Σ (a - r b)²) / Σ b`; None for n = 1.

    The linearised ratio estimator (Cochran, Sampling Techniques, section 6.3).
    """
    num_pairs, total = len(numerators), sum(denominators)
    if num_pairs < 2:
        return None
    ratio = sum(numerators) / total
    squares = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators))
    return math.sqrt(num_pairs / (num_pairs - 1) * squares) / total


def benchmark_table(models: Sequence[ModelScores], is_offline: bool) -> Table:
    """The table of `COLUMNS`: a row a model, "value ± standard error", and the notes without which it misleads."""
    rows: list[list[Cell]] = []
    for model in models:
        cells: list[Cell] = [model.name]
        for column in COLUMNS:
            scores = [model.tasks[task].metrics[column.metric_of(task)] for task in column.tasks(is_offline)]
            mark = "*" if column.name == "Wikitext BPB" and model.model_type == "eem" else ""
            cells.append(_text(_mean(scores)) + mark)
        rows.append(cells)
    counts = [sum(models[0].tasks[task].num_rows for task in column.tasks(is_offline)) for column in COLUMNS]
    rows.append(["rows scored", *(f"{count:,}" for count in counts)])
    return Table(
        columns=("model", *(column.name for column in COLUMNS)),
        rows=rows,
        title="Benchmarks",
        notes=[*_table_notes(models, is_offline), *_length_notes(models)],
    )


def task_table(models: Sequence[ModelScores]) -> Table:
    """Every metric of every task, a line each."""
    return Table(
        columns=("model", "task", "metric", "value", "standard error", "rows", "shots"),
        rows=[
            (model.name, task, metric, score.value, score.standard_error, scores.num_rows, scores.num_fewshot)
            for model in models
            for task, scores in model.tasks.items()
            for metric, score in scores.metrics.items()
        ],
        title="All metrics",
        notes=_length_notes(models),
        formats={"value": ".4f", "standard error": ".4f"},
    )


def harness_json(models: Sequence[ModelScores], tables: Sequence[Table], options: HarnessOptions, data: str) -> str:
    """All that was measured, and how."""
    content = {
        "provenance": provenance(_LIBRARIES),
        "data": data,
        "options": asdict(options),
        "models": [asdict(model) for model in models],
        "tables": [json.loads(table.to_json()) for table in tables],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _mean(scores: Sequence[Score]) -> Score:
    """The mean of independent scores: its standard error is `sqrt(Σ se²) / k`."""
    errors = [score.standard_error for score in scores]
    known = [error for error in errors if error is not None]
    return Score(
        value=sum(score.value for score in scores) / len(scores),
        standard_error=math.hypot(*known) / len(scores) if len(known) == len(errors) else None,
    )


def _text(score: Score) -> str:
    return f"{score.value:.4f}" + (f" ± {score.standard_error:.4f}" if score.standard_error is not None else "")


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
    if any(model.model_type == "eem" for model in models):
        notes.append(
            "An entropy estimation model's encoder was shown the context alone, and with * BOS alone. Its code's bits "
            "are not counted."
        )
    return notes


def _length_notes(models: Sequence[ModelScores]) -> list[str]:
    notes = []
    for model in models:
        cut = [f"{task} {s.truncated_prompts}" for task, s in model.tasks.items() if s.truncated_prompts]
        short = [f"{task} {s.shortened_answers}" for task, s in model.tasks.items() if s.shortened_answers]
        if cut:
            notes.append(
                f"{model.name}: of a context of {model.max_length} tokens, prompts that lost their beginning: "
                f"{', '.join(cut)}."
            )
        if short:
            notes.append(
                f"{model.name}: prompts answered in at most {model.max_length // 2} tokens, half the context, where "
                f"the task gives more: {', '.join(short)}."
            )
    partial = {
        f"{task} {s.num_rows} of {s.num_rows_available}"
        for model in models
        for task, s in model.tasks.items()
        if s.num_rows < s.num_rows_available
    }
    if partial:
        notes.append(f"Only the first rows were scored of: {', '.join(sorted(partial))}.")
    return notes
