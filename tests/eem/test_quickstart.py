"""The quickstart from run files to checkpoints, at a scale of seconds."""

import gzip
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from eem.__main__ import app
from modeling_eem import EEMForCausalLM, MaskedMixerForCausalLM
from modeling_eem.codec import Codec
from modeling_eem.data import CausalCollator, RowFormat, encode_text, windows
from modeling_eem.evaluation import held_out_code_length

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
CONTEXT, STEPS = 24, 3
HELD_OUT = ["My fellow citizens, the state of <our> Union is 👍 & strong.", "Call me Ishmael. " * 20, "The sea."]
EEM = {
    "model_type": "eem",
    "bottleneck_size": 4,
    "noise_scale": 0.0625,
    "code_dtype": "int8",
    "random_prefix_probability": 0.5,
    "encoder_config": {"hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": CONTEXT},
    "decoder_config": {"hidden_size": 16, "num_hidden_layers": 1},
}
CAUSAL = {
    "model_type": "masked_mixer",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "max_position_embeddings": CONTEXT,
}

LLAMA = {"model_type": "llama", "vocab_size": 8000, "num_attention_heads": 2, "intermediate_size": 16}


def _common(folder: Path) -> dict[str, Any]:
    return {
        "tokenizer": str(TOKENIZER),
        "train_files": [str(folder / "train.jsonl")],
        "validation_files": [str(folder / "held_out.jsonl")],
        "learning_rate": "2e-3",
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "steps",  # the quickstart keeps no checkpoint all the same
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _write(folder: Path) -> None:
    for name, texts in {"train": ["It was the best of times. " * 30] * 4, "held_out": HELD_OUT}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "configs").mkdir()
    for name, values in {"common": {}, "quickstart": EEM, "quickstart-causal": CAUSAL}.items():
        values = _common(folder) if name == "common" else {"base": "common.yaml", **values}
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(values))


def _run(folder: Path) -> Result:
    return CliRunner().invoke(
        app, ["quickstart", "--output", str(folder / "out"), "--configs", str(folder / "configs")]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder, and what was printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    _write(folder)
    result = _run(folder)
    assert result.exit_code == 0, result.output
    return folder / "out", result.stdout


@pytest.fixture(scope="module")
def results(run: tuple[Path, str]) -> dict[str, dict[str, Any]]:
    """The table's rows by their first column."""
    rows = json.loads((run[0] / "results.json").read_text())["rows"]
    return {row["what"]: row for row in rows}


def test_the_table_is_printed_and_written(run: tuple[Path, str], results: dict[str, dict[str, Any]]) -> None:
    out, printed = run
    assert list(results) == ["EEM", "causal baseline", "gzip", "bzip2", "xz"]
    markdown = (out / "results.md").read_text()
    for name, row in results.items():
        bits = f"{row['bits a byte']:.3f}"
        assert re.search(rf"\b{bits}\b", printed) and re.search(rf"{name}.* {bits} ", markdown)
    table = json.loads((out / "results.json").read_text())
    models = ("EEM", "causal baseline")
    best = min(models, key=lambda name: results[name]["bits a byte"])
    assert any(f"the {best} is ahead" in note for note in table["notes"])
    assert any(f"the same {STEPS * 4:,} rows" in note for note in table["notes"])
    assert any("50% of the EEM's were cut short" in note for note in table["notes"])
    for name in models:
        assert all(results[name][column] is not None for column in table["columns"])
    for folder in ("eem", "causal"):  # a call with `truncation=True` would have left its length there
        assert json.loads((out / folder / "tokenizer.json").read_text())["truncation"] is None


def test_the_held_out_text_is_compressed_with_both_models(
    run: tuple[Path, str], results: dict[str, dict[str, Any]]
) -> None:
    out, _ = run
    plain, blob = (out / "held_out.txt").read_bytes(), (out / "held_out.txt.eem").read_bytes()
    assert plain == "".join(HELD_OUT).encode()
    assert Codec.from_pretrained(out / "codec" / "causal").decompress(blob) == plain
    assert results["causal baseline"]["in a file"] == pytest.approx(8 * len(blob) / len(plain))
    with_code = Codec.from_pretrained(out / "codec" / "eem").compress(plain)
    assert results["EEM"]["in a file"] == pytest.approx(8 * len(with_code) / len(plain))


def test_compressors_get_the_same_bytes(results: dict[str, dict[str, Any]]) -> None:
    data = "".join(HELD_OUT).encode()
    bits = 8 * len(gzip.compress(data, compresslevel=9))
    assert results["gzip"]["bits a byte"] == pytest.approx(bits / len(data))


@pytest.mark.parametrize(
    "folder, name, kind", [("eem", "EEM", EEMForCausalLM), ("causal", "causal baseline", MaskedMixerForCausalLM)]
)
def test_checkpoints_score_what_the_table_says(
    run: tuple[Path, str], results: dict[str, dict[str, Any]], folder: str, name: str, kind: type
) -> None:
    model = AutoModelForCausalLM.from_pretrained(run[0] / folder)
    tokenizer = AutoTokenizer.from_pretrained(run[0] / folder)
    assert type(model) is kind and len(tokenizer) == model.config.vocab_size == 8000
    config, generation = model.config, model.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 1)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 0, 1)
    documents = enumerate(encode_text(tokenizer, text) for text in HELD_OUT)
    rows = list(windows(documents, RowFormat.from_tokenizer(tokenizer, CONTEXT)))
    collator = CausalCollator(pad_token_id=1, vocab_size=8000, max_length=CONTEXT)
    length = held_out_code_length(model, rows, collator)
    row = results[name]
    assert length.num_bytes == len("".join(HELD_OUT).encode())
    assert row["bits a byte"] == pytest.approx(length.bits_per_byte, rel=1e-5)
    assert row["nats a token"] == pytest.approx(length.cross_entropy, rel=1e-5)
    code_bits = len(rows) * (4 * 8 + 32) if kind is EEMForCausalLM else 0
    assert row["of them code"] == pytest.approx(code_bits / length.num_bytes)
    assert row["M params"] == pytest.approx(model.num_parameters() / 1e6)


@pytest.mark.parametrize("folder", ["eem", "causal"])
def test_a_card_holds_its_own_models_results(
    run: tuple[Path, str], results: dict[str, dict[str, Any]], folder: str
) -> None:
    path = run[0] / folder / "README.md"
    card = ModelCard.load(path)
    # The run files are not ours, so nothing is said of our text.
    assert card.data.license is None and card.data.language is None
    assert not any(word in str(card) for word in ("Moby-Dick", "Union", "novel"))
    assert "held_out.jsonl" in str(card) and "train.jsonl" in str(card)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.to_dict() == ModelCard(str(card)).data.to_dict()
    own, other = ("EEM", "causal baseline") if folder == "eem" else ("causal baseline", "EEM")
    for name in (own, "gzip", "bzip2", "xz"):
        assert f"{results[name]['bits a byte']:.4f}" in card.text
    assert f"{results[other]['bits a byte']:.4f}" not in card.text, "only its own rows"
    assert "ahead" not in card.text and f"# Quickstart {own}: " in card.text
    (measured, _) = card.data.eval_results
    assert measured.metric_type == "bits_per_byte"
    assert measured.metric_value == pytest.approx(results[own]["bits a byte"], abs=1e-6)
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (path.parent / figure).is_file(), "a figure that is not there"
    assert "## Limits" in card.text and re.search(rf"\| steps +\| +{STEPS} +\|", card.text)


def test_the_cards_code_runs_without_this_package(run: tuple[Path, str], tmp_path: Path) -> None:
    hide = "import sys\nsys.modules['modeling_eem'] = None\n"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONSAFEPATH": "1"}
    for folder in ("eem", "causal"):
        code = re.search(r"```python\n(.*?)```", (run[0] / folder / "README.md").read_text(), re.DOTALL)[1]
        done = subprocess.run(
            [sys.executable, "-c", hide + code],
            cwd=run[0] / folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "custom code" not in done.stdout + done.stderr and str(run[0]) not in code
        assert folder == "eem" or "<|endoftext|>The sea was calm." in done.stdout


def test_the_curve_and_the_heat_map_are_drawn(run: tuple[Path, str]) -> None:
    out, _ = run
    with Image.open(out / "learning_curve.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    page = (out / "heat_map.html").read_text()
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert "fellow" in text and "<our>" in text, "the first held-out text, escaped"
    assert page.count("bits") > 10


def test_nothing_else_is_left(run: tuple[Path, str]) -> None:
    out, printed = run
    assert {path.name for path in out.iterdir()} - {"trainer"} == {
        "eem",
        "causal",
        "codec",
        "heat_map.html",
        "held_out.txt",
        "held_out.txt.eem",
        "learning_curve.png",
        "results.json",
        "results.md",
    }
    assert not [path for path in out.rglob("*") if path.name.endswith((".part", ".tmp"))]
    assert str(out) in printed.replace("\n", "")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda folder: (folder / "configs" / "quickstart-causal.yaml").unlink(),
            "quickstart-causal.yaml does not ex",
        ),
        (lambda folder: (folder / "held_out.jsonl").unlink(), "held_out.jsonl: no such file"),
        (lambda folder: (folder / "train.jsonl").write_text(""), "no tokens"),
        (
            lambda folder: (folder / "train.jsonl").write_bytes(b'{"text": "\xff"}'),
            "train.jsonl: not UTF-8 at byte 10",
        ),
        (
            lambda folder: (folder / "configs" / "common.yaml").write_text(
                yaml.safe_dump({**_common(folder), "max_stps": 3})
            ),
            "unknown key 'max_stps'; did you mean 'max_steps'?",
        ),
        (
            lambda folder: (folder / "configs" / "quickstart-causal.yaml").write_text(
                yaml.safe_dump({**CAUSAL, **LLAMA, "base": "common.yaml"})
            ),
            "a codec needs a MaskedMixerForCausalLM",
        ),
    ],
)
def test_bad_input_is_one_line_before_training(tmp_path: Path, spoil: Any, message: str) -> None:
    _write(tmp_path)
    spoil(tmp_path)
    result = _run(tmp_path)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_is_one_line(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "configs" / "common.yaml").write_text(yaml.safe_dump({**_common(tmp_path), "learning_rate": 1e30}))
    result = _run(tmp_path)
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and re.match("error: the (loss|weight) .*is ", last), last
    assert "Traceback" not in result.stderr and not (tmp_path / "out" / "eem").exists()


def test_trained_models_stay_if_the_rest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no")

    _write(tmp_path)
    monkeypatch.setattr("eem.quickstart._compress", refuse)
    assert _run(tmp_path).exit_code == 2
    for folder in ("eem", "causal"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out" / folder)
        AutoTokenizer.from_pretrained(tmp_path / "out" / folder)
