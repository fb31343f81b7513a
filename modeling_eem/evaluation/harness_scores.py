"""Models' scores on lm-eval's tasks, and the differences between models that answered the same rows."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import stdev
from typing import Any

import numpy as np
from lm_eval.api.metrics import bits_per_byte, mean
from sklearn.exceptions import UndefinedMetricWarning

from modeling_eem.evaluation.harness_models import EEM_TYPES, EEMHarnessModel


@dataclass(frozen=True)
class Score:
    """A metric of a task.

    Attributes:
        value: lm-eval's value.
        standard_error: the value's; None if lm-eval has none, or for one row.
        rows: a row's number in the data → input of `aggregate`: a number for a mean, (nats, bytes) for bits per byte,
            (right label, given label) for mcc.
        aggregate: lm-eval's function from the rows to the value.
    """

    value: float
    standard_error: float | None
    rows: Mapping[int, Any] = field(default_factory=dict, repr=False)
    aggregate: Callable[[Sequence[Any]], float] = field(default=mean, repr=False)

    def difference(self, first: "Score", resamples: int) -> "Score":
        """This value minus `first`'s, with a standard error over the rows that both have.

        Args:
            resamples: draws of the bootstrap, for metrics without a formula; 0 leaves all standard errors out.
        """
        error = None
        if resamples and self.rows.keys() == first.rows.keys():
            numbers = sorted(self.rows)
            rows, others = ([score.rows[number] for number in numbers] for score in (self, first))
            error = paired_error(self.aggregate, rows, others, resamples)
        return Score(self.value - first.value, error)


@dataclass(frozen=True)
class TaskScores:
    """A model's scores on a task.

    Attributes:
        version: the task's version, from its YAML.
        num_fewshot: solved examples in each prompt.
        num_rows: rows that were scored.
        num_rows_available: rows in the data.
        truncated_prompts: number of different prompts that lost their beginning, because the context was too short.
        shortened_answers: number of different prompts with less room for an answer than the task asks for.
        metrics: `metric,filter` → score.
        is_rolling: whether whole pages were scored, which have no context.
    """

    version: str
    num_fewshot: int
    num_rows: int
    num_rows_available: int
    truncated_prompts: int
    shortened_answers: int
    metrics: dict[str, Score]
    is_rolling: bool = False


@dataclass(frozen=True)
class ModelScores:
    """A model's scores on all tasks: a row of the table.

    Attributes:
        adapter: the lm-eval model that scored it.
        max_length: tokens of context that it was given.
        dtype: the dtype of its weights.
        num_processes: how many processes shared its rows.

    Raises:
        ValueError: for an entropy estimation model that `EEMHarnessModel` did not score: its encoder saw the answers.
    """

    name: str
    model_type: str
    adapter: str
    num_parameters: int
    max_length: int
    dtype: str
    num_processes: int
    tasks: dict[str, TaskScores]

    def __post_init__(self) -> None:
        if self.model_type in EEM_TYPES and self.adapter != EEMHarnessModel.__name__:
            raise ValueError(
                f"{self.name} is an entropy estimation model and was scored by {self.adapter}, where its encoder "
                f"sees what is scored: score it by {EEMHarnessModel.__name__}."
            )

    def to_json(self) -> dict[str, Any]:
        """All values by name, without values of single rows."""
        tasks = {
            task: vars(scores)
            | {
                "metrics": {
                    metric: {"value": score.value, "standard_error": score.standard_error}
                    for metric, score in scores.metrics.items()
                }
            }
            for task, scores in self.tasks.items()
        }
        return vars(self) | {"tasks": tasks}


@dataclass(frozen=True)
class HarnessOptions:
    """How models are scored.

    Attributes:
        batch_size: rows at a time; changes no value.
        max_length: tokens of context, for models whose contexts differ; None takes the models' own.
        limit: first rows of each task to score; None scores all.
        bootstrap_iters: resamples for the standard errors that have no formula (mcc, f1, perplexity); 0 leaves all
            standard errors out.
        dtype: the weights' dtype: a name of PyTorch, or "auto" for the checkpoint's own.
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


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of k scores on different data; its standard error is `sqrt(Σ se²) / k`."""
    errors = [score.standard_error for score in scores]
    known = [error for error in errors if error is not None]
    return Score(
        value=sum(score.value for score in scores) / len(scores),
        standard_error=math.hypot(*known) / len(scores) if len(known) == len(errors) else None,
    )


def ratio_standard_error(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Standard error of `Σ a / Σ b` over n independent pairs: `sqrt(n / (n - 1) Σ (a - r b)²) / Σ b`; None for n = 1.

    The linearised ratio estimator (Cochran, Sampling Techniques, section 6.3).
    """
    return _error_of(_shares(pairs))


def paired_error(
    aggregate: Callable[[Sequence[Any]], float], rows: Sequence[Any], others: Sequence[Any], resamples: int
) -> float | None:
    """Standard error of `aggregate(rows) - aggregate(others)`, where both answer the same questions; None for one row.

    * For means: the standard error of the mean of the rows' differences.
    * For bits per byte: that of the linearised ratio, from each row's share in one minus its share in the other.
    * Otherwise (mcc, f1, perplexity): over `resamples` draws of rows with replacement, the same rows for both.
    """
    if len(rows) < 2:
        return None
    if aggregate is mean:
        return stdev(float(row) - float(other) for row, other in zip(rows, others)) / math.sqrt(len(rows))
    if aggregate is bits_per_byte:
        shares = [[share / math.log(2) for share in _shares(pairs)] for pairs in (rows, others)]
        return _error_of([share - other for share, other in zip(*shares)])
    picks = np.random.default_rng(0).integers(0, len(rows), (resamples, len(rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)  # of draws without a positive row
        differences = [aggregate([rows[i] for i in pick]) - aggregate([others[i] for i in pick]) for pick in picks]
    return float(np.std(differences, ddof=1))


def _shares(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """`(a - r b) / Σ b`: what each pair adds to the linearised error of `r = Σ a / Σ b`."""
    total = sum(b for _, b in pairs)
    ratio = sum(a for a, _ in pairs) / total
    return [(a - ratio * b) / total for a, b in pairs]


def _error_of(shares: Sequence[float]) -> float | None:
    num_rows = len(shares)
    if num_rows < 2:
        return None
    return math.sqrt(num_rows / (num_rows - 1) * sum(share**2 for share in shares))
