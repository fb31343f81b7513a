"""eem evaluate entropy-floor from runs' folders to a plot and an estimate."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from eem.evaluate import app
from modeling_eem import EEMConfig, EEMForCausalLM
from modeling_eem.data.prepare import prepare_rows
from modeling_eem.data.row_options import RowOptions
from modeling_eem.data.shards import corpus_files, plan_shards
from modeling_eem.files import sha256

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
N, SIZES = 16, (1, 2, 4)
TEXT = "Some years ago, never mind how long precisely. " * 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of falling code size; a larger head's weights stand for a worse model, so that losses fall with size."""
    folder = tmp_path_factory.mktemp("runs")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 8000, "bos_token_id": 0}
    encoder = {**sizes, "max_position_embeddings": N, "position_alignment": "right"}
    decoder = {**sizes, "max_position_embeddings": N + 1}
    (folder / "held_out.txt").write_text(TEXT)
    causal = LlamaConfig(**sizes, intermediate_size=8, num_attention_heads=1, max_position_embeddings=N)
    models: dict[str, Any] = {"causal": LlamaForCausalLM(causal)}
    for size in SIZES:
        torch.manual_seed(0)
        config = EEMConfig(
            encoder_config=encoder, decoder_config=decoder, bottleneck_size=size, code_dtype="float8_e4m3fn"
        )
        models[f"code-{size}"] = EEMForCausalLM(config)
        with torch.no_grad():
            models[f"code-{size}"].lm_head.weight.mul_(4 / size)
    models["also-2"] = models["code-2"]
    for name, model in models.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / name)
        _record(folder / name, [["held_out.txt", sha256(folder / "held_out.txt")]])
    return folder


def _record(run: Path, validation_files: list[list[str]], **other: Any) -> None:
    """Write what a run was measured on, as `eem train` does: names without folders, and hashes."""
    names = [name for name, _ in validation_files]
    data = {"validation_files": names, "train_rows": None, "made_of": {"validation_files": validation_files}} | other
    (run / "run.yaml").write_text(yaml.safe_dump({"data": data}))


def _floor(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["entropy-floor", *map(str, arguments)])


def test_points_floor_and_plot(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    arguments = [*(str(runs / f"code-{size}") for size in SIZES), "--known", "2.5", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, ["entropy-floor", *arguments])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "entropy-floor.json").read_text())
    num_bytes = len(TEXT.encode())
    assert [point["run"] for point in written["points"]] == [f"code-{size}" for size in SIZES]
    for size, point in zip(SIZES, written["points"]):
        rows = point["code_bits"] / (8 * size)
        assert rows == int(rows) and point["embedding"] == pytest.approx(8 * size * rows / num_bytes)
    floor = written["floor"]
    assert floor["crossing"] == pytest.approx(-floor["intercept"] / floor["slope"])
    assert floor["used"] == [f"code-{size}" for size in SIZES] and floor["first_at_zero"] is None
    assert "The source's true entropy is 2.500" in (tmp_path / "entropy-floor.md").read_text()
    with Image.open(tmp_path / "entropy-floor.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


@pytest.mark.parametrize(
    "names, message",
    [
        (["code-1", "code-2"], "needs 3 runs, not 2"),
        (["code-1", "code-2", "causal"], "causal is a causal model and has no code"),
        (["code-1", "code-2", "nowhere"], "nowhere holds no model"),
        (["code-1", "code-2", "code-2"], "code-2 is named twice"),
        (["code-1", "code-2", "also-2"], "the codes have 2 size(s), but a line needs 3"),
    ],
)
def test_bad_input_is_one_line(runs: Path, tmp_path: Path, names: list[str], message: str) -> None:
    arguments = [*(str(runs / name) for name in names), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["entropy-floor", *arguments])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_file_of_the_name_is_not_the_runs_text(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lay in the working directory under that name was measured."""
    monkeypatch.chdir(tmp_path)
    arguments = [*(runs / f"code-{size}" for size in SIZES), "--output", tmp_path / "out"]
    for content in (None, "The sea was calm. " * 9):
        if content is not None:
            (tmp_path / "held_out.txt").write_text(content)
        result = _floor(*arguments)
        assert result.exit_code == 2 and "held_out.txt, which the runs were measured on" in result.stderr
        assert "name the text with --data" in result.stderr and not (tmp_path / "out").exists()


def test_runs_are_compared_by_what_their_text_holds(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files may have one name, and a file several names."""
    for size in SIZES:
        shutil.copytree(runs / f"code-{size}", tmp_path / f"code-{size}")
    shutil.copy(runs / "held_out.txt", tmp_path / "second_name.txt")
    monkeypatch.chdir(tmp_path)
    arguments = [*(tmp_path / f"code-{size}" for size in SIZES), "--output", tmp_path / "out"]
    _record(tmp_path / "code-2", [["held_out.txt", "0" * 64]])
    assert "the runs held out different text" in _floor(*arguments).stderr
    _record(tmp_path / "code-2", [["second_name.txt", sha256(tmp_path / "second_name.txt")]])
    result = _floor(*arguments)
    assert result.exit_code == 0, result.stderr


def test_rows_that_were_held_out_are_known_by_their_hashes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": TEXT[start:]}) + "\n" for start in range(4)))
    shards = plan_shards(corpus_files([str(tmp_path / "text.jsonl")]), "text", 10**6)
    options = RowOptions(rows="windows", max_length=N, held_out=2)
    prepare_rows(shards, AutoTokenizer.from_pretrained(TOKENIZER), tmp_path / "rows", options)
    monkeypatch.chdir(tmp_path)
    digest = sha256(tmp_path / "rows" / "contents.json")
    for size in SIZES:
        shutil.copytree(runs / f"code-{size}", tmp_path / f"code-{size}")
    arguments = [*(tmp_path / f"code-{size}" for size in SIZES), "--output", tmp_path / "out"]
    for recorded, code in (("0" * 64, 2), (None, 2), (digest, 0)):
        for size in SIZES:
            made_of = {"rows_sha256": recorded, "validation_files": []}
            _record(tmp_path / f"code-{size}", [], train_rows="rows", made_of=made_of)
        result = _floor(*arguments)
        assert result.exit_code == code, result.output
        assert code == 0 or "rows, which the runs were measured on, is not found here" in result.stderr


@pytest.mark.parametrize("known", ["0", "-1", "nan", "inf"])
def test_a_truth_that_is_none_is_refused_before_the_work(runs: Path, tmp_path: Path, known: str) -> None:
    names = [str(runs / name) for name in ("code-1", "code-2", "also-2")]
    result = CliRunner().invoke(app, ["entropy-floor", *names, "--known", known, "--output", str(tmp_path / "out")])
    assert result.exit_code == 2 and "--known must be a positive number" in result.stderr
