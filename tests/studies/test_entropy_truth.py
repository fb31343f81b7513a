"""Scores against a truth are what they say, rows and truths stand at the same tokens, and cells survive a kill."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from modeling_eem.entropy import TokenEntropies


@pytest.fixture(scope="module")
def truth() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "studies" / "entropy_truth")
        import entropy_truth

        yield entropy_truth


def tiny_settings(truth: ModuleType, seed_rows: int = 40) -> object:
    schedule = truth.Schedule(snapshots=(1, 2), batch_size=4, learning_rate=1e-3)
    return truth.Settings(
        length=6,
        long_length=8,
        training_rows=seed_rows,
        held_out_rows=3,
        regression_rows=4,
        teacher_merges=4,
        large_code=6,
        stride=2,
        shape=truth.Shape(width=8, layers=1, heads=2, code_size=2),
        schedule=schedule,
        regression_schedule=schedule.__class__(snapshots=(2,), batch_size=4, learning_rate=1e-3),
    )


def test_a_score_is_error_correlation_and_total(truth: ModuleType) -> None:
    truth_RT = np.array([[1.0, 2.0, 3.0, 9.0]])
    values_RT = np.array([[2.0, 2.0, 5.0, np.nan]])
    score = truth.compare("exact", 1, "surprisal", values_RT, truth_RT)
    assert (score.tokens, score.error, score.total) == (3, 1.0, 1.5)
    assert score.pearson == pytest.approx(math.sqrt(3) / 2)
    unitless = truth.compare("l1", 1, "surprisal", values_RT, truth_RT, is_in_bits=False)
    assert math.isnan(unitless.error) and math.isnan(unitless.total) and unitless.pearson == score.pearson
    assert math.isnan(truth.compare("exact", 1, "entropy", values_RT, np.ones((1, 4))).pearson)


@pytest.mark.parametrize("name", ["markov-2", "copy", "hidden-markov", "parity", "markov-1", "iid"])
def test_the_truth_itself_scores_without_error(truth: ModuleType, name: str) -> None:
    settings = tiny_settings(truth)
    source = settings.sources()[name]()
    cell = truth.Cell(settings, source, "llama")
    ids_RT = truth.with_bos(cell.held_out_RT)
    nats_RT = truth.F.pad(-source.log_probs(cell.held_out_RT), (1, 0), value=float("nan"))
    result = TokenEntropies(ids_RT, nats_RT, torch.ones_like(ids_RT).bool(), "oracle")
    surprisal, entropy = cell._score("oracle", 1, result, cell.held_out_RT)
    assert (surprisal.tokens, surprisal.error) == (18, pytest.approx(0, abs=1e-12))
    assert surprisal.total == pytest.approx(1)
    (floor,) = (score for score in cell._truths() if score.estimator == "true surprisal")
    assert entropy.error == pytest.approx(floor.error)


@pytest.mark.parametrize("backbone", ["mixer", "llama"])
def test_a_cell_scores_every_estimator_once_a_snapshot_and_is_kept(
    truth: ModuleType, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, file = tiny_settings(truth), tmp_path / "cell.json"
    scores = truth.run_cell(file, settings, "markov-1", backbone)
    counts: dict[str, int] = {}
    for score in scores:
        counts[score["estimator"]] = counts.get(score["estimator"], 0) + 1
    occlusions = {f"occlusion, {metric}" for metric in ("l1", "l2", "max", "cosine", "loss")}
    over_training = {"exact", "two models", "sliding", "causal", "teacher", "gradient × input", *occlusions}
    over_training |= {"exact, large code", "occlusion, loss, large code"}
    assert {name for name, count in counts.items() if count == 4} == over_training  # two snapshots, two truths
    assert {name for name, count in counts.items() if count == 2} == {
        "regression, prefix",
        "regression, token",
        "a constant",
    }
    assert all(score["tokens"] == (6 if score["estimator"] == "sliding" else 18) for score in scores)

    other = truth.run_cell(tmp_path / "other.json", settings, "markov-1", backbone, seed=1)
    monkeypatch.setattr(truth, "Cell", None)  # nothing is trained again
    assert json.dumps(truth.run_cell(file, settings, "markov-1", backbone)) == json.dumps(scores)
    with pytest.raises(ValueError, match="other settings"):
        truth.run_cell(file, tiny_settings(truth, seed_rows=41), "markov-1", backbone)

    truth.write_record(tmp_path, {}, [*scores, *other])
    exact = [
        np.mean([s["error"] for s in given if (s["estimator"], s["step"], s["truth"]) == ("exact", 2, "surprisal")])
        for given in (scores, other)
    ]
    line = f"{np.mean(exact):.3f} ± {np.std(exact, ddof=1):.3f}"
    lines = (tmp_path / "entropy-truth.md").read_text().splitlines()
    (first, *_) = (one for one in lines if one.startswith("| exact "))
    assert line in first and exact[0] != exact[1]
    assert (tmp_path / "entropy-truth.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "entropy-truth.json").read_text())["scores"][0]["source"] == "markov-1"


def test_a_source_that_is_not_there_is_refused(truth: ModuleType, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    arguments = ["--output", str(tmp_path / "run"), "--records", str(tmp_path), "--sources", "markov-3"]
    result = CliRunner().invoke(truth.app, arguments)
    assert result.exit_code == 2 and "choose from" in result.output
    assert not any(tmp_path.iterdir())
