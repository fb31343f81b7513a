"""`make bench-gpu` at sizes for a CPU: every case runs and is recorded, and what it compares computes the same."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import gpu

    return gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="make bench-gpu")
def test_tiny_sizes_on_a_cpu(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.gpu(output=tmp_path, only=None, repeats=1, scale="tiny")
    content = json.loads((tmp_path / "gpu.json").read_text())
    ways = [(its["model"], its["way"]) for its in content["training"]]
    assert len(ways) == 9 and ("EEM mixer", "plain") in ways and ("causal Llama", "transformers'") in ways
    measured = " ".join(figure["what"] for figure in content["figures"])
    for name in ("MFU", "token mixing", "head and loss", "exact entropies", "generation"):
        assert name in measured
    assert "Training in bfloat16" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="no GPU"):
        gpu.gpu(output=None, only=None, repeats=1, scale="published")


def test_useful_flops_are_those_of_a_triangle(gpu: ModuleType) -> None:
    import gpu_training
    from gpu_cases import MaskedMixerConfig, MaskedMixerForCausalLM
    from training_cases import mixer_step_flops

    config = MaskedMixerConfig(vocab_size=50, hidden_size=16, num_hidden_layers=3, max_position_embeddings=12)
    useful = gpu_training.useful_flops(MaskedMixerForCausalLM(config), 12)
    assert useful == mixer_step_flops(12, 16, 1, layers=3, vocabulary=50)


def test_published_sizes_are_the_published_models(gpu: ModuleType) -> None:
    """As parameters count them; built without memory."""
    from gpu_training import causal_llama, eem_medium

    with torch.device("meta"):
        counts = [make(gpu.SCALES["published"]).num_parameters() for make in (eem_medium, causal_llama)]
    assert [round(count / 1e6, 1) for count in counts] == [94.3, 75.3]
