"""Models that set no limit to their rows: scored with --context, else one line that says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from modeling_eem.evaluation.bits_table import measure
from modeling_eem.evaluation.harness import open_models
from modeling_eem.evaluation.held_out_text import held_out_rows
from modeling_eem.evaluation.scored_models import common_context, load_checkpoints

ENDLESS = {
    "mamba": lambda size: MambaConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, state_size=4),
    "bloom": lambda size: BloomConfig(vocab_size=size, hidden_size=16, n_layer=1, n_head=2),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")


def _saved(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Path:
    config.bos_token_id = config.eos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_model_without_a_context_is_scored_with_one(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    checkpoint = load_checkpoints([_saved(tmp_path / kind, ENDLESS[kind](len(tokenizer)), tokenizer)])[0]
    with pytest.raises(ValueError, match=f"{kind} takes rows of any length: .*--context"):
        common_context([checkpoint])
    with pytest.raises(ValueError, match=f"{kind} takes rows of 2 tokens or more, not 1"):
        common_context([checkpoint], 1)
    assert common_context([checkpoint], 16) == 16
    (tmp_path / "text.txt").write_text("The sea was calm. " * 9)
    rows = held_out_rows([tmp_path / "text.txt"], tokenizer, checkpoint.config, "windows", 16)
    bits = measure(checkpoint, rows, 16, batch_size=2)
    with torch.no_grad():
        expected = sum(
            len(row["input_ids"][1:])
            * checkpoint.model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["input_ids"]])).loss.item()
            for row in rows
        )
    assert bits.total.nll_nats == pytest.approx(expected, rel=1e-5)


def test_contexts_that_differ_need_one(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    def llama(length: int) -> LlamaConfig:
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        return LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=length, **sizes)

    configs = {"mamba": ENDLESS["mamba"](len(tokenizer)), "short": llama(16), "long": llama(32)}
    mamba, short, long = load_checkpoints(
        [_saved(tmp_path / name, config, tokenizer) for name, config in configs.items()]
    )
    assert common_context([short]) == 16 and common_context([mamba, short, long], 8) == 8
    with pytest.raises(ValueError, match=r"different contexts \(short 16, long 32\)"):
        common_context([short, long])
    with pytest.raises(ValueError, match="mamba takes rows of any length"):
        common_context([mamba, short])
    with pytest.raises(ValueError, match="short takes rows of 2 to 16 tokens, not 17"):
        common_context([mamba, short, long], 17)


@pytest.mark.parametrize("change", ["missing", "extra", "cut"])
def test_a_model_without_all_its_weights_is_not_scored(
    change: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Filled with random numbers, it would score worse and say nothing."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    folder = _saved(tmp_path / "llama", LlamaConfig(vocab_size=len(tokenizer), **sizes), tokenizer)
    path = folder / "model.safetensors"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = load_file(path)
        tensors["model.layers.0.other.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
        if change == "missing":
            del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, path, {"format": "pt"})
    (checkpoint,) = load_checkpoints([folder])
    with pytest.raises(ValueError, match=str(folder)):
        _ = checkpoint.model


def test_names_say_no_more_of_the_machine_than_tells_them_apart(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes)
    paths = [_saved(tmp_path / name / "model", config, tokenizer) for name in ("a", "b")]
    assert [checkpoint.name for checkpoint in load_checkpoints(paths)] == ["a/model", "b/model"]
    assert [model.name for model in open_models(paths)] == ["a/model", "b/model"]
    monkeypatch.chdir(paths[0])
    assert open_models([Path(".")])[0].name == "model"
    with pytest.raises(ValueError, match="named twice"):
        open_models([Path("."), paths[0]])
