"""The one loader: models and tokenizers are whole, causal and each other's, or refused in one line."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
)

from modeling_eem import loading
from modeling_eem.data.tokenizer import train_tokenizer
from modeling_eem.entropy import CausalEntropy
from modeling_eem.loading import (
    COMPLETE_FILE,
    check_causal,
    check_name,
    check_tokenizer,
    context_length,
    load_config,
    load_model,
    load_tokenizer,
    own_tokenizer,
)
from modeling_eem.training.checkpoints import mark_complete

_TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(params=["masked_mixer", "llama", "eem"])
def folder(request: pytest.FixtureRequest, harness_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy, for damage."""
    return Path(shutil.copytree(harness_model(request.param), tmp_path / "model"))


def _write_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _write_weights(folder: Path, change: Callable[[dict[str, torch.Tensor], str], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights, sorted(name for name in weights if "layers" in name)[0])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_whole_model_is_loaded(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training and next(model.parameters()).dtype == torch.float32
    saved = load_file(folder / "model.safetensors")
    weights = model.state_dict()
    assert all(torch.equal(weights[name], saved[name]) for name in saved)
    assert len(own_tokenizer(folder)) == len(load_tokenizer(folder)) == 300


def test_weights_that_are_not_the_models(folder: Path) -> None:
    """Each was filled with random numbers, or dropped, with no more than a log."""
    changes: dict[str, tuple[Callable[[dict[str, torch.Tensor], str], Any], str]] = {
        "missing": (lambda weights, name: weights.pop(name), "lacks the weights"),
        "renamed": (lambda weights, name: weights.update({"x." + name: weights.pop(name)}), "lacks the weights"),
        "extra": (lambda weights, name: weights.update({name + "2": torch.ones(2)}), "holds weights that no causal"),
        "mismatched": (lambda weights, name: weights.update({name: torch.ones(3, 5)}), r"is \[3, 5\] in the weights"),
    }
    whole = (folder / "model.safetensors").read_bytes()
    for kind, (change, message) in changes.items():
        (folder / "model.safetensors").write_bytes(whole)
        _write_weights(folder, change)
        with pytest.raises(ValueError, match=message) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value), kind


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", b"{"),
        ("config.json", b"[1, 2]"),
        ("config.json", b'"text"'),
        ("config.json", b"\x00\xff" * 30),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "none"}'),
        ("config.json", b'{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 2000),
        ("model.safetensors", b"\xff" * 100),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
    ],
)
def test_damaged_files_are_one_line(
    file: str, content: bytes, harness_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(harness_model("llama"), tmp_path / "model"))
    (folder / file).write_bytes(content)
    capfd.readouterr()
    with pytest.raises((ValueError, OSError)) as caught:
        (load_tokenizer if "tokenizer" in file else load_model)(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "no report of a library beside it"


def test_a_cut_file_of_weights_is_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for length in (7, 100, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="model.safetensors: the weights cannot be read"):
            load_model(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if weights[name].ndim == 2)
    weights[name][0, 1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="numbers that are not finite"):
        load_model(folder)


def test_a_folder_that_a_training_ended_in_is_held_against_its_list(folder: Path) -> None:
    mark_complete(folder)
    (folder / "README.md").write_text("a card may be edited")
    load_model(folder), load_tokenizer(folder)
    for name, load in {"model.safetensors": load_model, "config.json": load_config}.items():
        file = folder / name
        data = file.read_bytes()
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        with pytest.raises(ValueError, match=f"{name} is not as training wrote it: copy the folder again"):
            load(folder)
        file.write_bytes(data)
    (folder / "tokenizer.json").rename(folder / "gone")
    with pytest.raises(ValueError, match="tokenizer.json is missing"):
        load_tokenizer(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / COMPLETE_FILE).write_text(json.dumps(sizes))  # as version 0.1 wrote it
    load_config(folder)
    (folder / COMPLETE_FILE).write_text("[1]")
    with pytest.raises(ValueError, match="complete.json is damaged"):
        load_model(folder)


@pytest.mark.parametrize("size", [2**70, 2**40, 2**20])
def test_absurd_sizes_are_refused_before_anything_is_built(
    size: int, harness_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(harness_model("llama"), tmp_path / "model"))
    _write_config(folder, num_hidden_layers=size)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("built"))
    with pytest.raises(ValueError, match="num_hidden_layers is"):
        load_model(folder)


def test_absurd_sizes_inside_a_sub_config(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(harness_model("eem"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["decoder_config"]["num_hidden_layers"] = 2**20
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_hidden_layers is 1,048,576 in config.json, but the weights are"):
        load_model(folder)


def test_folders_without_a_model(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none", "no such model", "a/b/c/d"):
        for load in (load_config, load_model, load_tokenizer):
            with pytest.raises((ValueError, OSError)) as caught:
                load(name)
            assert str(name) in str(caught.value) and "\n" not in str(caught.value)
    assert own_tokenizer(tmp_path) is None


def test_a_path_to_nothing_is_no_question_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    for name in ("runs/nope", "./nope", "../nope/x", str(tmp_path / "nope"), "a/b/c", "~/nope"):
        for load in (load_config, load_model, load_tokenizer):
            with pytest.raises(OSError, match="does not exist: name a folder") as caught:
                load(name)
            assert str(caught.value).startswith(name)
    check_name("gpt2")
    check_name("org/name")
    check_name("runs")


def test_another_kind_of_model(harness_model: Callable[..., Path], tmp_path: Path) -> None:
    llama = harness_model("llama")
    with pytest.raises(ValueError, match="lacks the weights score.bias, score.weight: it was not trained as a token"):
        load_model(llama, "token_classifier")
    with pytest.raises(ValueError, match="of the type 'llama', which is no autoencoder"):
        load_model(llama, "autoencoder")
    config = load_config(llama)
    config.num_labels = 1
    assert load_model(llama, "token_classifier", config=config, new_head=True).config.num_labels == 1
    _write = Path(shutil.copytree(llama, tmp_path / "model"))
    _write_weights(_write, lambda weights, name: weights.update({"score.weight": torch.ones(3, 5)}))
    load_model(_write, "token_classifier", config=config, new_head=True)  # a head of three labels is left out
    _write_weights(_write, lambda weights, name: weights.pop(name))
    with pytest.raises(ValueError, match="lacks the weights model.layers"):
        load_model(_write, "token_classifier", config=config, new_head=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm", "xlm-roberta", "electra"])
def test_models_that_see_the_future(model_type: str, dtype: str, tmp_path: Path) -> None:
    sizes = {**_TINY, "max_position_embeddings": 16, "emb_dim": 32, "n_layers": 1, "n_heads": 2, "dropout": 0.0}
    names = AutoConfig.for_model(model_type).to_dict()
    config = AutoConfig.for_model(model_type, **{name: value for name, value in sizes.items() if name in names})
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="sees later tokens"):
            load_model(tmp_path, dtype=dtype)
    if model_type == "xlm":  # takes `causal` and no classifier of one label
        return
    config.is_decoder = True
    causal = AutoModelForCausalLM.from_config(config)
    causal.save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype=dtype).config.model_type == model_type


@pytest.mark.parametrize("model_type", ["bloom", "mamba", "rwkv", "mixtral", "gpt2", "opt", "gemma2", "mpt"])
def test_causal_models_pass(model_type: str) -> None:
    names = AutoConfig.for_model(model_type).to_dict()
    sizes = {**_TINY, "max_position_embeddings": 16, "n_embd": 32, "n_layer": 1, "n_head": 2, "head_dim": 16}
    sizes |= {
        "num_key_value_heads": 2,
        "attention_hidden_size": 32,
        "num_hidden_layers": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 32,
        "n_positions": 16,
        "max_seq_len": 16,
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 1,
    }
    config = AutoConfig.for_model(model_type, **{name: value for name, value in sizes.items() if name in names})
    model = AutoModelForCausalLM.from_config(config).train()
    check_causal(model)
    assert model.training
    model.config.eos_token_id = [1, 2]  # as chat models have it
    check_causal(model)
    assert context_length(config) == {"bloom": None, "mamba": None, "rwkv": 1024}.get(model_type, 16)


def test_a_model_for_text_and_images_is_read_as_its_text_part() -> None:
    text = {name: value for name, value in _TINY.items() if name != "eos_token_id"}
    text |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision)).eval()
    assert not hasattr(model.config, "vocab_size") and context_length(model.config) == 16
    check_causal(model)
    tokenizer = train_tokenizer(["a ship came home"] * 3, 260)
    with pytest.raises(ValueError, match="the tokenizer has .* tokens and the model 40"):
        check_tokenizer(model.config, tokenizer)
    row = torch.tensor([[1, 7, 8, 9]])
    expected = torch.nn.functional.cross_entropy(model(row).logits[0, :-1].double(), row[0, 1:], reduction="none")
    torch.testing.assert_close(CausalEntropy(model)(input_ids=row).values[0, 1:], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="row 0 holds id 40, outside the vocabulary of 40"):
        CausalEntropy(model)(input_ids=torch.tensor([[1, 40]]))


def test_a_leak_of_one_part_in_a_thousand_is_seen(backbone_config: Callable[..., Any]) -> None:
    model = AutoModelForCausalLM.from_config(backbone_config("llama"))
    check_causal(model)
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    def leaking(*args: Any, **kwargs: Any) -> Any:
        output, *rest = plain(*args, **kwargs)
        return (output + 1e-3 * output.mean(1, keepdim=True), *rest)

    attention.forward = leaking
    with pytest.raises(ValueError, match="LlamaForCausalLM sees later tokens"):
        check_causal(model)


@torch.no_grad()
@pytest.mark.parametrize(
    "model_type", ["roberta", "camembert", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"]
)
def test_positions_that_begin_behind_the_padding(model_type: str) -> None:
    """The context is what the model really takes: a token more is an error."""
    config = AutoConfig.for_model(
        model_type,
        **{**_TINY, "max_position_embeddings": 18, "pad_token_id": 1, "bos_token_id": 0, "is_decoder": True},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert context_length(config) == 16
    model(input_ids=torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 17), 5))


def test_no_model_with_such_positions_is_forgotten() -> None:
    """As their code says: a table of positions that has a padding index."""
    import importlib
    import inspect

    for config_class, model_class in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        if not config_class.__module__.startswith("transformers."):
            continue
        source = inspect.getsource(importlib.import_module(model_class.__module__))
        has = "config.max_position_embeddings, config.hidden_size, padding_idx=self.padding_idx" in source
        assert has == (config_class.model_type in loading._POSITIONS_BEHIND_PADDING), config_class.model_type


def test_a_tokenizer_that_is_not_the_models() -> None:
    tokenizer = train_tokenizer(["the whale, the naïve whale"] * 3, 262)
    check_tokenizer(LlamaConfig(vocab_size=300, bos_token_id=0), tokenizer)
    check_tokenizer(LlamaConfig(vocab_size=262, bos_token_id=None), tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has 262 tokens and the model 261"):
        check_tokenizer(LlamaConfig(vocab_size=261, bos_token_id=0), tokenizer)
    with pytest.raises(ValueError, match="a/model: the tokenizer's BOS is 0 and the model's 2"):
        check_tokenizer(LlamaConfig(vocab_size=262, bos_token_id=2), tokenizer, "a/model")


def test_eight_bit_floats_are_not_asked_whether_they_are_finite() -> None:
    loading.check_finite(
        [("w", torch.zeros(2, dtype=torch.float8_e4m3fn)), ("i", torch.zeros(2, dtype=torch.int8))], "x"
    )
    with pytest.raises(ValueError, match="w hold numbers that are not finite"):
        loading.check_finite([("w", torch.tensor([torch.inf]))], "x")


@pytest.mark.parametrize("module", ["modeling_eem", "modeling_eem.training", "modeling_eem.evaluation.quantization"])
def test_nothing_is_said_on_import(module: str) -> None:
    """bitsandbytes warns of a kernel on the Hub that it does not need; transformers' trainer imports it."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import {module}"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
