"""Standard errors of scores and of their differences, against the bootstrap and against independent formulas."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import bits_per_byte, matthews_corrcoef, mean

from modeling_eem.evaluation.harness_scores import (
    HarnessOptions,
    ModelScores,
    Score,
    TaskScores,
    mean_score,
    paired_error,
    ratio_standard_error,
)


def _two_models(kind: str) -> tuple[Callable, list[Any], list[Any]]:
    """A metric of lm-eval, and what two models that mostly agree add to it, a row each."""
    generator = np.random.default_rng(0)
    agree = generator.random(80) < 0.8
    if kind == "mean":
        rows = generator.random(80) < 0.5
        return mean, rows.astype(float).tolist(), np.where(agree, rows, ~rows).astype(float).tolist()
    if kind == "bits_per_byte":
        sizes = generator.uniform(50, 500, 80)
        nats = -sizes * generator.normal(1.4, 0.2, 80)
        other = nats + sizes * generator.normal(0.02, 0.03, 80)
        return bits_per_byte, list(zip(nats, sizes)), list(zip(other, sizes))
    right, given = generator.integers(0, 2, 80), generator.integers(0, 2, 80)
    given = np.where(agree, right, given)
    return matthews_corrcoef, list(zip(right, given)), list(zip(right, np.roll(given, 1)))


@pytest.mark.parametrize("kind", ["mean", "bits_per_byte", "mcc"])
def test_a_paired_error_is_that_of_the_bootstrap_over_rows(kind: str) -> None:
    aggregate, rows, others = _two_models(kind)
    draws = 200 if kind == "mcc" else 1000  # scikit-learn's takes milliseconds
    picks = np.random.default_rng(1).integers(0, len(rows), (draws, len(rows)))
    drawn = [aggregate([rows[i] for i in pick]) - aggregate([others[i] for i in pick]) for pick in picks]
    error = paired_error(aggregate, rows, others, draws)
    assert error == pytest.approx(np.std(drawn), rel=0.15)
    assert paired_error(aggregate, rows, rows, resamples=20) == 0
    assert paired_error(aggregate, rows[:1], others[:1], resamples=20) is None


def test_pairs_tell_more_than_two_scores_apart() -> None:
    aggregate, rows, others = _two_models("bits_per_byte")
    apart = math.hypot(*(ratio_standard_error([(n / math.log(2), b) for n, b in pairs]) for pairs in (rows, others)))
    assert paired_error(aggregate, rows, others, resamples=1) < apart / 3


def test_a_difference_is_of_the_same_rows() -> None:
    first = Score(0.5, 0.1, dict(enumerate([0.0, 1.0, 0.0, 1.0])))
    # Row by row 1, 0, 0, -1 more: the same mean, and sqrt(2 / 3) as their standard deviation. Rows in another order.
    other = Score(0.5, 0.1, {3: 0.0, 2: 0.0, 1: 1.0, 0: 1.0})
    difference = other.difference(first, resamples=10)
    assert (difference.value, difference.standard_error) == (0.0, pytest.approx(math.sqrt(2 / 3) / 2))
    assert other.difference(first, resamples=0).standard_error is None, "no standard errors were asked for"
    elsewhere = Score(0.5, 0.1, {4: 0.0, 5: 1.0, 6: 0.0, 7: 1.0})
    assert elsewhere.difference(first, resamples=10).standard_error is None


def test_the_mean_of_scores() -> None:
    assert mean_score([Score(1.0, 0.3), Score(2.0, 0.4)]) == Score(1.5, pytest.approx(0.25))
    assert mean_score([Score(1.0, 0.3), Score(2.0, None)]).standard_error is None


def test_the_standard_error_of_a_ratio_is_the_bootstraps() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.uniform(50, 500, 60)
    bits = sizes * generator.normal(2, 0.3, 60)
    picks = generator.integers(0, 60, (4000, 60))
    bootstrap = (bits[picks].sum(1) / sizes[picks].sum(1)).std()
    assert ratio_standard_error(list(zip(bits, sizes))) == pytest.approx(bootstrap, rel=0.05)
    assert ratio_standard_error([(1.0, 2.0)]) is None


def _model(model_type: str, adapter: str) -> ModelScores:
    task = TaskScores("1.0", 0, 6, 6, 0, 0, {"acc,none": Score(0.5, 0.1, {0: 1.0, 1: 0.0})})
    return ModelScores("code", model_type, adapter, 10, 512, "float32", 1, {"arc_easy": task})


def test_an_eem_scored_by_another_model_gets_no_row() -> None:
    with pytest.raises(ValueError, match="code is an entropy estimation model and was scored by HFLM"):
        _model("eem", "HFLM")


def test_json_holds_no_single_rows() -> None:
    content = _model("llama", "CausalHarnessModel").to_json()
    assert content["name"] == "code" and content["tasks"]["arc_easy"]["num_rows"] == 6
    assert content["tasks"]["arc_easy"]["metrics"] == {"acc,none": {"value": 0.5, "standard_error": 0.1}}


@pytest.mark.parametrize(
    ("option", "message"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"limit": -1}, "limit"), ({"dtype": "int9"}, "dtype")],
)
def test_impossible_options_are_refused(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessOptions(**option)
