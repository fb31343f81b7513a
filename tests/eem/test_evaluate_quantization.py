"""eem evaluate quantization from folders to tables and plots."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from eem.evaluate import app
from modeling_eem import EEMConfig, EEMForCausalLM
from modeling_eem.evaluation.quantization import PROBE, PROBE_UP, UNROUNDED
from modeling_eem.models.quantization_eem import CODE_FORMATS

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
N = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `plain`, `noisy` and the causal `llama`, and the text `held_out.txt`."""
    folder = tmp_path_factory.mktemp("quantization")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8000, "bos_token_id": 0}
    encoder = {**sizes, "max_position_embeddings": N, "position_alignment": "right"}
    decoder = {**sizes, "max_position_embeddings": N + 1}
    models: dict[str, Any] = {
        name: EEMForCausalLM(
            EEMConfig(encoder_config=encoder, decoder_config=decoder, bottleneck_size=4, noise_scale=scale)
        )
        for name, scale in {"plain": 0.0, "noisy": 0.25}.items()
    }
    causal = LlamaConfig(**sizes, intermediate_size=8, num_attention_heads=1, max_position_embeddings=N)
    models["llama"] = LlamaForCausalLM(causal)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / name)
    (folder / "held_out.txt").write_text("Some years ago, never mind how long precisely. " * 6)
    return folder


def _arguments(folder: Path, output: Path, *models: str) -> list[str]:
    where = "--data", str(folder / "held_out.txt"), "--output", str(output)
    return ["quantization", "--model", *(str(folder / name) for name in models), *where, "--sweep-rows", "2"]


def test_tables_plots_and_numbers(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, _arguments(folder, tmp_path, "plain", "noisy"))
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "quantization.json").read_text())
    markdown = (tmp_path / "quantization.md").read_text()
    assert list(written["models"]) == ["plain", "noisy"]
    for name, model in written["models"].items():
        assert [cost["format"] for cost in model["formats"]] == [UNROUNDED, *CODE_FORMATS, PROBE, PROBE_UP]
        assert all(f"{cost['cross_entropy']:.4f}" in markdown for cost in model["formats"])
        assert {(effect["part"], effect["code_format"]) for effect in model["layers"]} == {
            (part, code_format)
            for part in ("activations", "weights")
            for code_format in ("float8_e4m3fn", "float8_e5m2")
        }
        assert len(model["histogram"]["counts"][0]) == 128
        assert f"histogram-{name}.png" in markdown
    pictures = {"formats.png", "layers.png", "histogram-plain.png", "histogram-noisy.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"quantization.json", "quantization.md", *pictures}
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.format == "PNG" and min(image.size) > 200


def test_a_model_without_a_code_is_refused(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, _arguments(folder, tmp_path / "out", "plain", "llama"))
    assert result.exit_code == 2 and "llama is a causal model and has no code" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_more_models_than_colours_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, _arguments(folder, tmp_path / "out", *["plain"] * 8))
    assert result.exit_code == 2 and "a plot holds 7 models, not 8" in result.stderr
