"""Benchmarks: runs several models on lm-eval's tasks."""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from accelerate.utils import patch_environment
from lm_eval.api.metrics import bits_per_byte, mean
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.utils import resolve_max_length
from lm_eval.tasks import TaskManager
from sklearn.exceptions import UndefinedMetricWarning
from transformers import PreTrainedConfig

from modeling_eem.evaluation.harness_models import CausalHarnessModel, EEMHarnessModel, too_long
from modeling_eem.evaluation.harness_scores import (
    HarnessOptions,
    ModelScores,
    Score,
    TaskScores,
    ratio_standard_error,
)
from modeling_eem.evaluation.quiet import quiet_lm_eval
from modeling_eem.files import short_names
from modeling_eem.loading import check_tokenizer, check_weights, load_tokenizer


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that can be scored, as `open_models` found."""

    name: str
    path: Path
    config: PreTrainedConfig = field(repr=False)

    @property
    def is_eem(self) -> bool:
        return self.config.model_type == "eem"


def open_models(paths: Sequence[Path], max_length: int | None = None) -> list[ModelFolder]:
    """Check that checkpoints can be scored beside each other; each model is loaded once.

    Raises:
        ValueError: for a folder named twice, or without config, weights or tokenizer, or with some that are cut short;
            a model that is not a causal language model; a tokenizer with more tokens than the model, or without
            BOS and EOS; contexts that differ, or are shorter than `max_length`.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a folder is named twice: leave one out.")
    models = [ModelFolder(name, path, _checked_config(path)) for name, path in zip(short_names(paths), paths)]
    lengths = {model.name: resolve_max_length(model.config) for model in models}
    told = ", ".join(f"{name} {length}" for name, length in lengths.items())
    if max_length is None and len(set(lengths.values())) > 1:
        raise ValueError(
            f"the models' contexts differ ({told}), so scores cannot be compared: give all of them the same with "
            f"--max-length {min(lengths.values())}."
        )
    if max_length is not None and max_length > min(lengths.values()):
        raise ValueError(f"--max-length {max_length} is longer than a model's context ({told}).")
    return models


def _checked_config(path: Path) -> PreTrainedConfig:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no model: name a folder that save_pretrained wrote, with a config.json.")
    if not (path / "tokenizer_config.json").is_file():
        raise ValueError(f"{path} holds no tokenizer: put it there with tokenizer.save_pretrained({str(path)!r}).")
    config, tokenizer = check_weights(path), load_tokenizer(path)
    check_tokenizer(config, tokenizer, path)
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(
            f"{path}: the tokenizer needs a BOS and an EOS: set tokenizer.bos_token, tokenizer.eos_token."
        )
    return config


def check_lengths(
    models: Sequence[ModelFolder], tasks: Mapping[str, ConfigurableTask], options: HarnessOptions
) -> None:
    """Check, before any model is loaded, that each answer to be scored fits the context.

    Raises:
        ValueError: for a task with an answer of more tokens than the context; it names the task.
    """
    context = options.max_length or min(resolve_max_length(model.config) for model in models)
    long = {name: _answers_over(context, task, options.limit) for name, task in tasks.items()}
    for model in models if any(long.values()) else []:
        tokenizer = load_tokenizer(model.path)
        before = len(tokenizer.encode("A"))
        for name, answers in long.items():
            for answer in answers:
                if (length := len(tokenizer.encode("A" + answer)) - before) > context:
                    raise ValueError(f"task {name}: {too_long(length, context)}")


def check_rows(tasks: Mapping[str, ConfigurableTask], limit: int | None, num_processes: int) -> None:
    """Check, before any model is loaded, that each process has a row of each task: lm-eval needs that.

    Raises:
        ValueError: for a task with fewer rows than processes; it names the task.
    """
    for name, task in tasks.items():
        num_rows = min(len(task.eval_docs), limit or len(task.eval_docs))
        if num_rows < num_processes:
            raise ValueError(
                f"task {name} scores {num_rows} rows and there are {num_processes} processes: raise --limit, or start "
                "fewer."
            )


def _answers_over(num_bytes: int, task: ConfigurableTask, limit: int | None) -> set[str]:
    """The task's answers that may have more than so many tokens, because they have more bytes: a token is no less."""
    if task.OUTPUT_TYPE not in ("loglikelihood", "multiple_choice"):
        return set()  # pages are cut into windows, and generated answers are given less room
    answers: set[str] = set()
    context = [""] if task.multiple_input else ""
    for number, row in task.doc_iterator(limit=limit):
        made = task.construct_requests(row, context, metadata=(task.config.task, number, 1), apply_chat_template=False)
        requests = made if isinstance(made, list) else [made]
        texts = (str(request.arguments[1]) for request in requests)
        answers |= {text for text in texts if len(text.encode()) > num_bytes}
    return answers


def score_models(
    models: Sequence[ModelFolder],
    tasks: dict[str, ConfigurableTask],
    options: HarnessOptions,
    begin: Callable[[str, str], None],
    advance: Callable[[int], None],
) -> Iterator[ModelScores]:
    """The scores of one model after the other on all tasks; nothing on every process except the first.

    An error, or Ctrl-C, is raised only after what its model scored before: hours of work may be in that.

    Args:
        begin: called with the model and the task before each task.
        advance: called with the number of rows that the model has read since the last call.
    """
    for folder in models:
        adapter = EEMHarnessModel if folder.is_eem else CausalHarnessModel
        model = adapter(
            str(folder.path),
            advance=advance,
            batch_size=options.batch_size,
            max_length=options.max_length,
            dtype=options.dtype,
        )
        scored: dict[str, TaskScores] = {}
        failed: BaseException | None = None
        try:
            for name, task in tasks.items():
                begin(folder.name, name)
                try:
                    task_scores = score_task(model, task, options)
                except ValueError as error:
                    raise ValueError(f"{folder.name}, task {name}: {error}") from error
                if task_scores is not None:
                    scored[name] = task_scores
        except (Exception, KeyboardInterrupt) as error:
            failed = error
        if scored:
            yield ModelScores(
                name=folder.name,
                model_type=folder.config.model_type,
                adapter=adapter.__name__,
                num_parameters=model.model.num_parameters(),
                max_length=model.max_length,
                dtype=str(model.model.dtype).removeprefix("torch."),
                num_processes=model.world_size,
                tasks=scored,
            )
        if failed is not None:
            raise failed


class _RandomOfProcess:
    """Draws what a single process would draw for this process's rows: every `world_size`-th row, from `rank` on.

    lm-eval draws a prompt's solved examples row by row from one generator. Processes that share the rows would draw
    other rows' examples, and would score different prompts.
    """

    def __init__(self, seed: int | None, rank: int, world_size: int):
        self.random = random.Random(seed)
        self.rank, self.world_size = rank, world_size

    def sample(self, population: Sequence[Any], k: int) -> list[Any]:
        return [self.random.sample(population, k) for _ in range(self.world_size)][self.rank]


def score_task(model: CausalHarnessModel, task: ConfigurableTask, options: HarnessOptions) -> TaskScores | None:
    """The scores of one task; None on every process except the first."""
    model.start()
    if model.world_size > 1:

        def set_rnd(rnd: int | None) -> ContextSampler:
            draws = _RandomOfProcess(rnd, model.rank, model.world_size)
            task.sampler.rnd = draws  # pyright: ignore[reportAttributeAccessIssue]  # `sample` is all that it calls
            return task.sampler

        task.sampler.set_rnd = set_rnd
    # lm-eval prints each bootstrap, and scikit-learn warns of each draw without a positive row: both are expected.
    # lm-eval's bootstrap stays in this process: its own would be forks of this one, with models and threads.
    with (
        redirect_stdout(StringIO()),
        warnings.catch_warnings(),
        patch_environment(DISABLE_MULTIPROC=1),
        quiet_lm_eval(),
    ):
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        results = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            limit=options.limit,
            bootstrap_iters=options.bootstrap_iters,
            log_samples=True,
        )
    counted = model.gather_object((model.truncated, model.shortened))
    if results is None:
        return None
    truncated, shortened = (set().union(*sets) for sets in zip(*counted))
    return _task_scores(task, results, len(truncated), len(shortened), options.bootstrap_iters)


def _task_scores(
    task: ConfigurableTask, results: Mapping[str, Any], truncated: int, shortened: int, resamples: int
) -> TaskScores:
    name = task.config.task
    return TaskScores(
        version=str(results["versions"][name]),
        num_fewshot=results["n-shot"][name],
        num_rows=results["n-samples"][name]["effective"],
        num_rows_available=results["n-samples"][name]["original"],
        truncated_prompts=truncated,
        shortened_answers=shortened,
        metrics=dict(_scores(task, results["results"][name], results["samples"][name], resamples)),
        is_rolling=task.OUTPUT_TYPE == "loglikelihood_rolling",
    )


def _scores(
    task: ConfigurableTask, results: dict[str, Any], samples: Sequence[dict[str, Any]], resamples: int
) -> Iterator[tuple[str, Score]]:
    """lm-eval's flat `metric,filter` and `metric_stderr,filter` joined, with each row's contribution."""
    for key, value in results.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        rows = {entry["doc_id"]: entry[metric] for entry in samples if entry["filter"] == chosen and metric in entry}
        aggregate = task.aggregation().get(metric, mean)
        error = results.get(f"{metric}_stderr,{chosen}")
        if aggregate is bits_per_byte and resamples:  # lm-eval has none
            error = ratio_standard_error([(nats / math.log(2), size) for nats, size in rows.values()])
        yield key, Score(float(value), float(error) if isinstance(error, int | float) else None, rows, aggregate)
