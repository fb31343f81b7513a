"""Every run file: it parses, its model is built without memory, and configs/README.md lists it as it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_from_disk
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from modeling_eem import EEMAutoencoderConfig, EEMConfig
from modeling_eem.data.fingerprint import FINGERPRINT_FILE
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.files import asset
from modeling_eem.models.configuration_eem import EncoderDecoderConfig
from modeling_eem.training import DataArguments, RunArguments, build_model, read_run_file
from modeling_eem.training.run_file import _read

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
ARGUMENTS = (DataArguments, RunArguments)
FILES = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("*.yaml"))}
FILES = {name: path for name, path in FILES.items() if not name.startswith("accelerate/")}


def _says_its_model(path: Path) -> bool:
    values = yaml.safe_load(path.read_text())
    return "model_type" in values or ("base" in values and _says_its_model(path.parent / asset(values["base"])))


EXPERIMENTS = {name: path for name, path in FILES.items() if _says_its_model(path)}  # the others are bases

# Millions, as published.
PUBLISHED_PARAMETERS = {
    "eem/transformer-small.yaml": 15.66,
    "eem/transformer-medium.yaml": 94.32,
    "eem/transformer-large.yaml": 524.46,
    "causal/transformer.yaml": 75.3,
}


def _backbone_parameters(config: PreTrainedConfig) -> int:
    """Blocks alone, without token embeddings and head."""
    d, layers = config.hidden_size, config.num_hidden_layers
    if config.model_type == "llama":  # attention 4 d², feed-forward 3 d · 4d, norms before both and at the end
        return layers * (16 * d**2 + 2 * d) + d
    n, k, heads = config.max_position_embeddings, config.mixing_kernel_size, config.num_mixing_heads
    mixing = k * n**2 + n
    if heads:
        mixing = heads * mixing + 2 * d**2 + 2 * d
    return layers * (8 * d**2 + 9 * d + mixing)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _parameters(config: PreTrainedConfig) -> int:
    """Of the whole model, from the equations alone."""
    vocab, d = config.vocab_size, config.hidden_size
    head = vocab * d
    if not isinstance(config, EncoderDecoderConfig):
        return _backbone_parameters(config) + vocab * d + head
    d_enc, p = config.encoder_config.hidden_size, config.bottleneck_size
    down, up = (0, 0) if p is None else (_linear(d_enc, p), _linear(p, d_enc))
    count = _backbone_parameters(config.encoder_config) + _backbone_parameters(config.decoder_config)
    count += vocab * d_enc + down + head
    if isinstance(config, EEMAutoencoderConfig):
        if config.memory_expansion == "unroll":
            return count + up + _linear(d_enc // 2, d)
        return count + up + (_linear(d_enc, d) if d_enc != d else 0)
    assert isinstance(config, EEMConfig)
    if config.memory_introduction == "embedding":
        return count + vocab * (d - (d_enc if p is None else p))
    return count + up + _linear(d_enc, d) + vocab * d


@pytest.fixture(scope="module", params=EXPERIMENTS)
def experiment(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    config, _ = read_run_file(EXPERIMENTS[request.param], ARGUMENTS)
    with torch.device("meta"):
        return request.param, build_model(config)


def _header(path: Path) -> tuple[str, str, str]:
    """What a run file's first comment says: the experiment, what was published, what was inferred."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("# "))
    said = {"Published": "", "Inferred": ""}
    for line in lines[1:]:
        key, _, text = line.partition(": ")
        if key in said:
            said[key] = text
    return lines[0] if lines else "", said["Published"], said["Inferred"]


def _readme() -> dict[str, tuple[str, ...]]:
    """Cells of the table in configs/README.md: experiment, parameters, published, inferred, by file."""
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| (.*) \|$", (CONFIGS / "README.md").read_text(), re.MULTILINE)
    assert all(shown == link for shown, link, _ in rows)
    return {name: tuple(cell.strip() for cell in cells.split("|")) for name, _, cells in rows}


def test_parameters_follow_the_equations(experiment: tuple[str, PreTrainedModel]) -> None:
    name, model = experiment
    assert model.num_parameters() == _parameters(model.config)
    if name in PUBLISHED_PARAMETERS:
        assert model.num_parameters() / 1e6 == pytest.approx(PUBLISHED_PARAMETERS[name], abs=0.02)


def test_the_table_says_what_the_file_says(experiment: tuple[str, PreTrainedModel]) -> None:
    name, model = experiment
    what, published, inferred = _header(EXPERIMENTS[name])
    assert what.endswith("."), "a run file begins with a comment that says which experiment it is"
    assert _readme()[name] == (what, f"{model.num_parameters():,}", published, inferred)


def test_layers_can_be_wrapped(experiment: tuple[str, PreTrainedModel]) -> None:
    """FSDP wraps the classes that a model names, and stops at one that is not in the model."""
    _, model = experiment
    layers = {type(module).__name__ for name, module in model.named_modules() if re.search(r"\.layers\.\d+$", name)}
    assert set(model._no_split_modules) == layers and layers <= {"MaskedMixerBlock", "LlamaDecoderLayer"}


def test_every_run_file_is_in_the_table_or_a_base() -> None:
    values = {path: yaml.safe_load(path.read_text()) for path in FILES.values()}
    bases = {(path.parent / asset(value["base"])).resolve() for path, value in values.items() if "base" in value}
    assert set(_readme()) == set(EXPERIMENTS)
    assert {path for name, path in FILES.items() if name not in EXPERIMENTS} <= bases
    assert all(_header(path)[0] for path in FILES.values())


def test_text_that_ships_is_there() -> None:
    values = [yaml.safe_load(path.read_text()) for path in FILES.values()]
    files = [name for value in values for key in ("train_files", "validation_files") for name in value.get(key) or []]
    assert files and all(name.startswith("asset:") and Path(asset(name)).is_file() for name in files)


@pytest.mark.parametrize("path", [*FILES.values(), *sorted((ROOT / "studies").rglob("*.yaml"))], ids=str)
def test_paths_lead_into_the_checkout_from_any_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the run file: what is made stands in rows/, runs/ or data/ at the root, what ships is an asset."""
    monkeypatch.chdir(tmp_path)
    values = _read(path)
    for key in ("tokenizer", "train_rows", "output_dir", "train_files", "validation_files"):
        for value in values[key] if isinstance(values.get(key), list) else [values.get(key)]:
            if value is not None:
                is_asset = value.startswith("asset:") and Path(asset(value)).exists()
                assert is_asset or Path(value).relative_to(ROOT).parts[0] in ("rows", "runs", "data"), key


def _key(values: dict[str, Any], path: Path) -> str:
    own = {key: value for key, value in values.items() if key != "base"}
    base = path.parent / asset(values["base"]) if "base" in values else None
    return yaml.safe_dump({"base": str(base and base.resolve()), **own})


def test_no_two_run_files_are_one_experiment() -> None:
    keys = [_key(yaml.safe_load(path.read_text()), path) for path in FILES.values()]
    assert len(keys) == len(set(keys))


@pytest.fixture(scope="module")
def rows_with_entropies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 tokens, as `eem data prepare` and then `eem entropy` leave them."""
    folder = tmp_path_factory.mktemp("rows")
    text = asset("asset:quickstart/validation.jsonl.gz")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    options = RowOptions(max_length=256, held_out=2)
    prepare_rows(plan_shards([text], "text", 10**7), tokenizer, folder / "plain", options, Launch(workers=1))
    rows = load_from_disk(folder / "plain")
    rows.map(lambda row: {"token_entropies": [float("nan"), *(i % 5 for i in row["input_ids"][1:])]}).save_to_disk(
        folder / "entropies"
    )
    shutil.copy(folder / "plain" / FINGERPRINT_FILE, folder / "entropies")
    return folder / "entropies"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("cpu-small/")])
def test_small_experiments_run(name: str, rows_with_entropies: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "--config", f"configs/{name}", "--output_dir", str(tmp_path)]
    command += ["--max_steps", "2", "--max_held_out_rows", "8", "--report_to", "none"]
    if "train_rows:" in EXPERIMENTS[name].read_text():
        command += ["--train_rows", str(rows_with_entropies)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    assert (tmp_path / "model.safetensors").is_file() and "held out: " in run.stdout
