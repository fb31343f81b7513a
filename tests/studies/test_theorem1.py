"""The Theorem 1 experiments: what is measured, what is compared, what survives a kill."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from modeling_eem.data import Source
from modeling_eem.evaluation.intervals import holm

sys.path.append(str(Path(__file__).parents[2] / "studies" / "theorem1"))
import theorem1
from theorem1_holm import counts, differences, paired_p_value, read_experiment
from theorem1_report import Estimate, Experiment, summarize, summary_table, write_record
from theorem1_runs import CONTROL, Curves, Key, Method, ResultFile, Schedule, all_methods


class TrueModel:
    """Predicts what the source does, moved towards the uniform distribution by `blur`."""

    def __init__(self, source: Source, blur: float = 0.0):
        self.source, self.blur = source, blur

    def __call__(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        assert (input_ids[:, 0] == theorem1.BOS).all()
        after_it = torch.cat([input_ids[:, 1:], torch.zeros_like(input_ids[:, :1])], dim=1)
        probs_BTS = self.source.next_probs(after_it)
        probs_BTS = (1 - self.blur) * probs_BTS + self.blur / theorem1.SYMBOLS
        return SimpleNamespace(logits=torch.nn.functional.pad(probs_BTS, (0, 2)).log())


@pytest.fixture(params=list(theorem1.SOURCES))
def source(request: pytest.FixtureRequest) -> Source:
    return theorem1.SOURCES[request.param]()


def test_the_truth_has_no_excess_and_everything_else_has(source: Source) -> None:
    ids_BT = source.sample(40, theorem1.LENGTH, torch.Generator().manual_seed(0))
    divergence, excess = theorem1.divergence(source, ids_BT), theorem1.excess_loss(source, ids_BT)
    assert divergence(TrueModel(source)) == pytest.approx(0, abs=1e-9)
    assert excess(TrueModel(source)) == pytest.approx(0, abs=1e-9)
    blurred = TrueModel(source, blur=0.5)
    assert divergence(blurred) > 0.02
    # The sample's excess estimates the divergence: the same mean, with the noise of 40 × 48 symbols.
    assert excess(blurred) == pytest.approx(divergence(blurred), abs=0.1)


def test_a_run_follows_from_its_key() -> None:
    schedule = Schedule(steps=4, batch_size=4, learning_rate=1e-2, points=2, entropy_threshold=1.0)
    source = theorem1.SOURCES["copy with noise"]()

    def test_values(loss: str, target: str = "", seed: int = 0) -> Curves:
        return theorem1.run(source, Key("copy with noise", 8, seed, loss, target), schedule)[0]

    control = test_values("cross_entropy")
    assert control == test_values("cross_entropy")
    assert control.steps == [2, 4] and len(control.train) == len(control.validation) == 2
    assert control.test != test_values("cross_entropy", seed=1).test
    assert test_values("hinge", "surprisal").test != test_values("hinge", "entropy").test != control.test


def test_every_loss_is_a_method_and_has_each_target_that_it_needs() -> None:
    methods = all_methods(["a", "b"])
    assert methods[0] == CONTROL and len(methods) == len(set(methods)) == 3 + 5 * 2
    assert Method("distance", "b") in methods and Method("focal") in methods


def test_best_is_chosen_on_the_validation_sample() -> None:
    curves = Curves([1, 2, 3], train=[3, 2, 1], validation=[2, 1, 3], test=[0.5, 0.7, 0.1])
    assert curves.stop == 1


def test_student_s_interval() -> None:
    """By hand: mean 2, standard deviation 1, t(0.975, 2) = 4.3027."""
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.half_width) == pytest.approx((2.0, 4.3027 / 3**0.5), abs=1e-4)
    assert [Estimate(mean, 1.0).sign for mean in (-2.0, -0.5, 0.5, 2.0)] == [-1, 0, 0, 1]
    with pytest.raises(ValueError, match="two seeds"):
        Estimate.of([1.0])


@pytest.fixture
def experiment() -> Experiment:
    """Seeds differ by 10, methods by tenths: only paired differences can tell these apart."""
    results = {}
    for seed in range(3):
        for method, shift in ((CONTROL, 0.0), (Method("hinge", "surprisal"), -0.1), (Method("focal"), 0.2)):
            test = [10.0 * seed + 2, 10.0 * seed + 1 + shift, 10.0 * seed + 3 + shift + 0.01 * seed]
            key = Key("source", 5, seed, method.loss, method.target)
            results[key] = Curves([1, 2, 3], train=[0.3, 0.2, 0.1], validation=[2, 1, 3], test=test)
    return Experiment("trial", "A trial", "nats", {"steps": 3}, results, log_scale=True)


def test_methods_are_compared_seed_by_seed(experiment: Experiment) -> None:
    summary = summarize(experiment, "source", 5)
    hinge, focal = summary[Method("hinge", "surprisal")], summary[Method("focal")]
    assert hinge["best"].half_width > 10 and hinge["best"].sign == 0
    assert (hinge["best - stopped"].mean, hinge["best - stopped"].sign) == (pytest.approx(-0.1), -1)
    assert (hinge["train, best"].mean, hinge["train, end"].mean) == pytest.approx((0.2, 0.1))
    assert (focal["end - stopped"].mean, focal["end - stopped"].sign) == (pytest.approx(2.21), 1)
    notes = summary_table(experiment, "source", 5).notes
    assert "At its best below early-stopped cross-entropy: hinge (surprisal)." in notes
    assert "At its best above early-stopped cross-entropy: focal." in notes
    assert "At its end above early-stopped cross-entropy: cross_entropy; hinge (surprisal); focal." in notes


def test_the_record_is_written(experiment: Experiment, tmp_path: Path) -> None:
    write_record(tmp_path, experiment)
    assert "hinge" in (tmp_path / "trial.md").read_text()
    assert (tmp_path / "trial.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "trial.json").read_text())
    assert len(record["runs"]) == 9 and len(record["summary"]) == 3 and "commit" in record["provenance"]


def test_results_survive_a_kill_but_not_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    keys = [Key("source", 5, seed, "hinge", "surprisal") for seed in range(2)]
    curves = Curves([1, 2], train=[0.3, 0.1], validation=[1.0, 0.5], test=[1.0, 0.6])
    ResultFile(path, {"steps": 3}).append(keys[0], curves, seconds=1.0)
    with path.open("a") as file:
        file.write('{"key": {"source": "sou')
    again = ResultFile(path, {"steps": 3})
    assert again.results == {keys[0]: curves}
    again.append(keys[1], curves, seconds=1.0)
    assert ResultFile(path, {"steps": 3}).results == dict.fromkeys(keys, curves)
    with pytest.raises(ValueError, match="other settings"):
        ResultFile(path, {"steps": 4})


def test_holm_s_correction() -> None:
    """By hand: 3 · 0.01, 2 · 0.04, and 0.05 no smaller than the one before."""
    assert holm([0.04, 0.01, 0.05]) == pytest.approx([0.08, 0.03, 0.08])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert paired_p_value([0.0, 0.0]) == 1.0


def test_the_published_counts_are_those_of_the_record() -> None:
    """One by one they are the record's own intervals; one cell of the documentation's numbers would show."""
    folder = Path(theorem1.__file__).parent
    found = differences(read_experiment(folder / "theorem1.json"))
    assert counts(found) == (108, 32, 49, 22, 41)
    summary = json.loads((folder / "theorem1.json").read_text())["summary"]
    told_apart = [
        each for each in summary if abs(each["best - stopped"]["mean"]) > each["best - stopped"]["half_width"]
    ]
    assert len(told_apart) == 32 + 49
