"""eem evaluate bits from folders to tables, and what it refuses before it reads a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from eem.evaluate import app
from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, EEMConfig, EEMForCausalLM
from modeling_eem.evaluation import held_out_code_length
from modeling_eem.evaluation.held_out_text import held_out_rows
from modeling_eem.evaluation.scored_models import load_checkpoints

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
N, VOCAB_SIZE = 24, 8000
TEXTS = ["Call me Ishmael. " * 20, "The sea.", "Some years ago, never mind how long precisely. " * 4]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}


def _backbone(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": VOCAB_SIZE, "max_position_embeddings": N}
    return {**sizes, **SPECIAL, **changes}


def _llama(context: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(**_backbone(max_position_embeddings=context), intermediate_size=8, num_attention_heads=1)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `eem`, `autoencoder`, `llama` and `long`, and the text `held_out.jsonl`."""
    folder = tmp_path_factory.mktemp("bits")
    encoder = {"encoder_config": _backbone(position_alignment="right")}
    backbones = {**encoder, "decoder_config": _backbone(max_position_embeddings=N + 1)}
    autoencoder = EEMAutoencoderConfig(**encoder, decoder_config=_backbone(), code_dtype="float16")
    models = {
        "eem": EEMForCausalLM(EEMConfig(**backbones, bottleneck_size=4, code_dtype="int8")),
        "autoencoder": EEMAutoencoder(autoencoder),
        "unsettled": EEMForCausalLM(EEMConfig(**backbones, bottleneck_size=4)),
        "llama": _llama(N),
        "long": _llama(2 * N),
    }
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    models["llama"].save_pretrained(folder / "bare")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "held_out.jsonl").write_text(lines)
    (folder / "empty.jsonl").write_text("")
    return folder


def _run(folder: Path, output: Path, model: str, *arguments: str, data: str = "held_out.jsonl") -> Result:
    where = "--model", str(folder / model), "--data", str(folder / data), "--output", str(output)
    return CliRunner().invoke(app, ["bits", *where, *arguments])


def test_all_kinds_of_models_on_the_same_text(folder: Path, tmp_path: Path) -> None:
    names = ["eem", "llama", "autoencoder"]
    result = _run(folder, tmp_path, "eem", "--baseline", str(folder / "llama"), str(folder / "autoencoder"))
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "bits.json").read_text())
    assert [model["name"] for model in written["models"]] == names
    for checkpoint, model in zip(load_checkpoints([folder / name for name in names]), written["models"]):
        rows = held_out_rows([folder / "held_out.jsonl"], checkpoint.tokenizer, checkpoint.config, "windows", N)
        expected = held_out_code_length(checkpoint.model, rows, checkpoint.collator(N))
        assert model["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
        assert model["num_bytes"] == len("".join(TEXTS).encode())
        assert model["bits_per_byte_95"]["low"] <= model["bits_per_byte"] <= model["bits_per_byte_95"]["high"]
    code_bits = {"eem": 4 * 8 + 32, "llama": 0, "autoencoder": 8 * 16}
    assert [model["code_bits"] / model["rows"] for model in written["models"]] == list(code_bits.values())
    assert {item["name"] for item in written["compressors"]} == {"gzip", "bzip2", "xz", "zstd", "brotli"}
    markdown = (tmp_path / "bits.md").read_text()
    for model in written["models"]:
        assert f"{model['bits_per_byte']:.3f}" in markdown
    assert written["provenance"]["command"] and written["provenance"]["versions"] in markdown
    assert len((tmp_path / "documents.csv").read_text().splitlines()) == 1 + len(names) * len(TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {"bits.md", "bits.json", "documents.csv"}


@pytest.mark.parametrize("rows", ["windows", "pad", "full", "stream"])
def test_the_batch_size_changes_no_value(folder: Path, tmp_path: Path, rows: str) -> None:
    values = []
    for size in ("1", "7"):
        assert _run(folder, tmp_path / size, "eem", "--rows", rows, "--batch-size", size).exit_code == 0
        (model,) = json.loads((tmp_path / size / "bits.json").read_text())["models"]
        values.append([model[name] for name in ("rows", "nll_nats", "bits_per_byte", "normalized_loss")])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_format_for_a_model_without_one(folder: Path, tmp_path: Path) -> None:
    assert _run(folder, tmp_path, "unsettled", "--code-dtype", "int4").exit_code == 0
    (model,) = json.loads((tmp_path / "bits.json").read_text())["models"]
    assert model["code_bits"] == model["rows"] * (4 * 4 + 32)


@pytest.mark.parametrize(
    "model, arguments, data, message",
    [
        ("bare", [], "held_out.jsonl", "bare holds no tokenizer"),
        ("nowhere", [], "held_out.jsonl", "nowhere holds no model"),
        ("unsettled", [], "held_out.jsonl", "set config.code_dtype"),
        ("eem", ["--code-dtype", "int9"], "held_out.jsonl", "code_dtype must be"),
        ("eem", [], "empty.jsonl", "empty.jsonl holds no text"),
        ("eem", [], "missing.jsonl", "missing.jsonl: no such file"),
        ("eem", ["--baseline", "long"], "held_out.jsonl", "different contexts (eem 24, long 48)"),
        ("eem", ["--context", "48"], "held_out.jsonl", "eem takes rows of 2 to 24 tokens, not 48"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, tmp_path: Path, model: str, arguments: list[str], data: str, message: str
) -> None:
    arguments = [str(folder / value) if value == "long" else value for value in arguments]
    result = _run(folder, tmp_path / "out", model, *arguments, data=data)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in ("file", "file/inside"):
        result = _run(folder, tmp_path / output, "nowhere")
        assert result.exit_code == 2 and f"{tmp_path / 'file'} is a file: name a folder" in result.stderr
