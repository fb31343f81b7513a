"""The study of convergence: its noise scale, its gradients, and its steps to a held-out value."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "studies" / "theorem1"))
import convergence
import theorem1
from convergence_report import steps_to, write_record
from theorem1_runs import CONTROL, Curves, Key, Method, tiny_llama

from modeling_eem.training import TokenLossOptions

LLAMA_IDS = {"bos_token_id": theorem1.BOS, "eos_token_id": theorem1.BOS, "pad_token_id": theorem1.PAD}


def test_the_noise_scale_of_known_gradients() -> None:
    """A signal of 2 in one direction, and a variance of 9 in each of 50."""
    gradients = 3 * torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))
    gradients[:, 0] += 2
    assert convergence.noise_scale(gradients) == pytest.approx(9 * 50 / 4, rel=0.1)
    few = [1 / convergence.noise_scale(part) for part in gradients.split(200)]
    assert sum(few) / len(few) == pytest.approx(4 / (9 * 50), rel=0.1), "fewer rows show neither more nor less signal"
    assert convergence.noise_scale(torch.tensor([[1.0], [-1.0]])) == math.inf


def test_rows_gradients_are_those_of_the_batch() -> None:
    source, methods = theorem1.SOURCES["hidden Markov"](), [CONTROL, Method("distance", "surprisal")]
    torch.manual_seed(0)
    model = tiny_llama(16, 1, theorem1.LENGTH + 1, theorem1.SYMBOLS + 2, **LLAMA_IDS).eval()
    rows_BT = source.sample(3, theorem1.LENGTH, torch.Generator().manual_seed(0))
    rows_MBP = convergence.row_gradients(model, source, rows_BT, methods, TokenLossOptions())
    padded_BT = torch.nn.functional.pad(rows_BT, (1, 0), value=theorem1.BOS)
    model(input_ids=padded_BT, labels=padded_BT).loss.backward()
    expected_P = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(rows_MBP[0].mean(0), expected_P, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    losses_BT = -convergence.log_probs(model, rows_BT).gather(2, rows_BT[..., None])[..., 0]
    (losses_BT + source.log_probs(rows_BT)).abs().mean().backward()
    expected_P = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(rows_MBP[1].mean(0), expected_P, rtol=1e-4, atol=1e-6)


def test_the_expected_loss_is_the_mean_of_many_samples() -> None:
    source = theorem1.SOURCES["order-2 Markov"]()
    torch.manual_seed(0)
    model = tiny_llama(16, 1, theorem1.LENGTH + 1, theorem1.SYMBOLS + 2, **LLAMA_IDS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform
        ids_BT = source.sample(500, theorem1.LENGTH, torch.Generator().manual_seed(1))
        sampled = -convergence.log_probs(model, ids_BT).gather(2, ids_BT[..., None]).mean()
        assert convergence.expected_loss(model, source, ids_BT) == pytest.approx(sampled.item(), rel=0.02)


def test_noise_is_measured_along_a_training_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ROWS": 16, "TRUTH_ROWS": 16, "BATCHES": 2, "STEPS": 4, "NOISE_POINTS": 2}
    for name, size in sizes.items():
        monkeypatch.setattr(convergence, name, size)
    monkeypatch.setattr(convergence, "SOURCES", {"hidden Markov": theorem1.SOURCES["hidden Markov"]})
    found = convergence.noise_of_all(tmp_path, 1, {"rows": 16})
    methods = convergence.all_methods(list(theorem1.TARGETS))
    assert [len(point) for point in found["hidden Markov", 0]] == [len(methods)] * 2
    assert -1 <= found["hidden Markov", 0][0][0]["batch_cosine"] <= 1
    monkeypatch.setattr(convergence, "noise_along", lambda *_: pytest.fail("made again"))
    assert convergence.noise_of_all(tmp_path, 1, {"rows": 16}) == found
    with pytest.raises(ValueError, match="other settings"):
        convergence.noise_of_all(tmp_path, 1, {"rows": 17})


def test_steps_to_a_value() -> None:
    curves = Curves([10, 20, 30], train=[], validation=[], test=[4.0, 2.0, 3.0])
    assert [steps_to(curves, level) for level in (5, 4, 3, 2, 1.9)] == [10, 10, 15, 20, math.inf]


def test_the_record_says_who_comes_there(tmp_path: Path) -> None:
    methods = [CONTROL, Method("hinge", "surprisal"), Method("hinge", "entropy")]
    values = {methods[0]: [4.0, 2.0, 1.0, 1.0], methods[1]: [2.0, 1.0, 0.5, 0.25], methods[2]: [4.0, 4.0, 3.0, 3.0]}
    found = {
        (rate, Key("Markov", 64, seed, method.loss, method.target)): Curves(
            [10, 20, 30, 40], train=[], validation=[], test=[(rate + seed) * value for value in test]
        )
        for method, test in values.items()
        for seed in (1, 2)
        for rate in (0.01, 0.1)
    }
    point = [{"noise_scale": scale, "cosine": 0.9, "batch_cosine": 0.5} for scale in (100.0, 10.0, math.inf)]
    write_record(tmp_path, found, {("Markov", seed): [point] * 2 for seed in (1, 2)}, methods, {"steps": 40})
    text = (tmp_path / "convergence.md").read_text()
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in text.splitlines()[:12]}
    assert "| 0.01 |" in rows["hinge", "surprisal"] and "0.667 ± 0.000" in rows["hinge", "surprisal"]
    assert "| never" in rows["hinge", "entropy"]
    assert "| no signal" in text and (tmp_path / "convergence.png").stat().st_size > 10_000
