"""A saved folder runs where this package is not installed: offline, in a clean process, by trust_remote_code=True."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeling_eem import kernels

# The environment may have this package installed: importing it fails, and so does whatever tries.
WITHOUT_PACKAGE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_eem":
            raise ImportError("modeling_eem must not be needed")

sys.meta_path.insert(0, Refuse())
"""
WITH_PACKAGE = "import modeling_eem"
SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification

results = {}
for folder in sys.argv[2:]:
    name = folder.rsplit("/", 1)[-1]
    input_ids = torch.arange(2, 12)[None]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    output = base(input_ids)
    results[f"{name} base"] = output.logits if "logits" in output else output.last_hidden_state
    if config.model_type == "eem_autoencoder":
        results[f"{name} generated"] = base.reconstruct(base.encode(input_ids))
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        results[f"{name} head"] = model(input_ids).logits
        results[f"{name} generated"] = model.generate(input_ids[:, :4], do_sample=False, max_new_tokens=6)
        model.save_pretrained(folder + "-again")
        again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
        assert torch.equal(again(input_ids).logits, results[f"{name} head"])
    if config.model_type == "masked_mixer":
        AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
save_file({name: x.contiguous() for name, x in results.items()}, sys.argv[1])
"""
# The same folder, once by its own code before this package is imported, and once by this package's classes.
TWICE = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

foreign = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype="float32")
import modeling_eem
from modeling_eem import kernels
from modeling_eem.codec import build_integer_model
from modeling_eem.data import CausalCollator
from modeling_eem.entropy import CausalEntropy, ExactEntropy
from modeling_eem.evaluation.code_length import code_bits_of, row_codes, row_nats

own = modeling_eem.EEMForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
assert type(foreign).__name__ == type(own).__name__ and not isinstance(foreign, modeling_eem.EEMForCausalLM)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
rows = [{"input_ids": [own.config.bos_token_id, 5, 9, 11, 7]}, {"input_ids": [own.config.bos_token_id, 8, 12]}]
collator = CausalCollator(pad_token_id=1, vocab_size=own.config.vocab_size, max_length=8)
assert code_bits_of(foreign.config) == code_bits_of(own.config) > 0
codes = row_codes(own, rows, collator)
torch.testing.assert_close(row_codes(foreign, rows, collator), codes)
for given in (None, codes):
    measured = [row_nats(model, rows, collator, codes_NP=given) for model in (foreign, own)]
    torch.testing.assert_close(*map(torch.tensor, measured))
totals = [ExactEntropy(model)(["the sea"], tokenizer).totals() for model in (foreign, own)]
torch.testing.assert_close(*totals)
folders = [Path(sys.argv[1]).with_name(name) for name in ("foreign", "own")]
# A folder's own code has no kernels, and a last bit of a calibration can turn a rounding.
with kernels.plain():
    for model, built in zip((foreign, own), folders):
        build_integer_model(model, tokenizer, ["the sea was calm and a ship came over it"]).save_pretrained(built)
tensors = [{file.name: file.read_bytes() for file in built.glob("*.safetensors")} for built in folders]
assert tensors[0] == tensors[1] != {}
"""
NAMES = ["mixer, heads and kernel", "eem", "eem, llama", "autoencoder"]


@pytest.fixture
def folders(tmp_path: Path, make_model: Callable[[str], Any]) -> dict[str, Any]:
    """Folders at a place of their own, as if downloaded, and the models saved there."""
    saved = {}
    for name in NAMES:
        model = make_model(name)
        model.save_pretrained(tmp_path / "saved" / name)
        target = tmp_path / "elsewhere" / name.replace(", ", "_").replace(" ", "_")
        shutil.copytree(tmp_path / "saved" / name, target)
        saved[str(target)] = model
    shutil.rmtree(tmp_path / "saved")
    return saved


@pytest.mark.parametrize("beginning", [WITHOUT_PACKAGE, WITH_PACKAGE], ids=["without package", "beside package"])
@torch.no_grad()
def test_a_saved_folder_brings_its_code(
    beginning: str, folders: dict[str, Any], tmp_path: Path, assert_same_logits: Callable
) -> None:
    """Base, head and generation equal the saved model's, whether or not there are installed classes to mix up."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = tmp_path / "results.safetensors"
    command = [sys.executable, "-I", "-c", beginning + SCRIPT, str(result), *folders]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    results = load_file(result)
    input_ids = torch.arange(2, 12)[None]
    # Code from a folder has no kernels, and PyTorch's own products have no fixed last bits.
    is_plain = beginning is WITHOUT_PACKAGE
    same = assert_same_logits if is_plain else partial(torch.testing.assert_close, rtol=0, atol=0)
    with kernels.plain() if is_plain else nullcontext():
        for folder, model in folders.items():
            name = Path(folder).name
            if model.config.model_type == "eem_autoencoder":
                same(results[f"{name} base"], model(input_ids).logits)
                assert torch.equal(results[f"{name} generated"], model.reconstruct(model.encode(input_ids)))
                continue
            same(results[f"{name} base"], model.model(input_ids).last_hidden_state)
            same(results[f"{name} head"], model(input_ids).logits)
            generated = model.generate(input_ids[:, :4], do_sample=False, max_new_tokens=6)
            assert torch.equal(results[f"{name} generated"], generated)


def test_a_model_of_a_folders_own_code_is_measured_as_ours(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "eem"
    shutil.copytree(harness_model("eem"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "code_dtype": "int8"}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-P", "-c", TWICE, str(folder)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]


def test_a_saved_folder_names_its_code(folders: dict[str, Any]) -> None:
    """For every Auto class there is a model for; and holds the models' stratum alone."""
    heads = {
        "masked_mixer": {"AutoModelForCausalLM", "AutoModelForTokenClassification"},
        "eem": {"AutoModelForCausalLM"},
        "eem_autoencoder": set(),
    }
    for folder, model in folders.items():
        auto_map = json.loads((Path(folder) / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", "AutoModel"} | heads[model.config.model_type]
        code = {path.stem for path in Path(folder).glob("*.py")}
        assert {reference.split(".")[0] for reference in auto_map.values()} <= code
        assert all(name.endswith(("_eem", "_masked_mixer", "_autoencoder")) for name in code)
