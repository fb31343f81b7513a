"""Every test runs offline and from the same seeds; what tests of several files build is built here."""

import os

# Read when the libraries are imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

VOCAB_SIZE = 40
CONTEXT = 16


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# What a tiny backbone needs beside the common sizes: two heads of an even width, no dropout (training and evaluation
# compute the same), no tied head, weights large enough that a token seen or not seen shows in the logits.
_BACKBONES: dict[str, dict[str, Any]] = {
    "masked_mixer": {},
    "llama": {"num_attention_heads": 2, "initializer_range": 0.2},
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2},
    "gpt_neox": {"num_attention_heads": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2},
    "gpt2": {
        "n_head": 2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(scope="session")
def backbone_config() -> Callable[..., Any]:
    """Tiny configs by model type: 2 layers, 40 tokens, pad 0, BOS 1, no EOS, so that generation runs its length."""
    from transformers import AutoConfig

    import modeling_eem  # noqa: F401 (registers the masked mixer)

    def make(model_type: str = "masked_mixer", hidden_size: int = 32, **changes: Any) -> Any:
        common = {
            "hidden_size": hidden_size,
            "num_hidden_layers": 2,
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": CONTEXT,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
        }
        if model_type != "gpt2":  # GPT-2 takes four times the width by itself
            common["intermediate_size"] = 4 * hidden_size
        return AutoConfig.for_model(model_type, **{**common, **_BACKBONES[model_type], **changes})

    return make


@pytest.fixture(scope="session")
def eem_config(backbone_config: Callable[..., Any]) -> Callable[..., Any]:
    """Tiny EEM configs: an encoder of width 16, a code of 6 numbers, a decoder of width 32, 16 tokens of text."""
    from modeling_eem import EEMConfig

    def make(
        encoder: str = "masked_mixer",
        decoder: str = "masked_mixer",
        memory_introduction: str = "token",
        **changes: Any,
    ) -> Any:
        alignment = {"position_alignment": "right"} if encoder == "masked_mixer" else {}
        slots = int(memory_introduction == "token")
        return EEMConfig(
            **{
                "encoder_config": backbone_config(encoder, hidden_size=16, **alignment),
                "decoder_config": backbone_config(decoder, max_position_embeddings=CONTEXT + slots),
                "memory_introduction": memory_introduction,
                "bottleneck_size": 6,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def pad_rows() -> Callable[..., tuple[Tensor, Tensor]]:
    """Rows of ids as one batch `[B, width]` and its mask, padded with other tokens that must not matter."""

    def pad(rows: list[Tensor], side: str, width: int) -> tuple[Tensor, Tensor]:
        input_ids = torch.randint(2, VOCAB_SIZE, (len(rows), width))
        mask = torch.zeros_like(input_ids)
        for row, row_mask, ids in zip(input_ids, mask, rows):
            gap = width - len(ids)
            columns = {
                "left": torch.arange(len(ids)) + gap,
                "right": torch.arange(len(ids)),
                "both": torch.arange(len(ids)) + gap // 2,
                "holes": torch.randperm(width)[: len(ids)].sort().values,
            }[side]
            row[columns], row_mask[columns] = ids, 1
        return input_ids, mask

    return pad


@pytest.fixture(scope="session")
def assert_same_logits() -> Callable[[Tensor, Tensor], None]:
    """The project's tolerance for logits in float32: 1e-5 * max(1, |logit|)."""

    def check(actual: Tensor, expected: Tensor) -> None:
        assert actual.shape == expected.shape
        excess = (actual - expected).abs() - 1e-5 * expected.abs().clamp(min=1)
        assert excess.max() <= 0, f"logits differ by {(actual - expected).abs().max():.2g}"

    return check


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote to holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


# Runs of train.py at a scale of seconds: a tokenizer of 280 tokens, 24 tokens a row.
_TEXT = "the sea was calm and a ship came over it from far away with grey sails at dawn while we slept"
_RUN: dict[str, dict[str, Any]] = {
    "eem": {
        "bottleneck_size": 4,
        "noise_scale": 0.0625,
        "code_dtype": "int8",
        "random_prefix_probability": 0.5,
        "encoder_config": {"hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 24},
        "decoder_config": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 280},
    },
    "eem_autoencoder": {
        "code_dtype": "int8",
        "encoder_config": {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 24},
        "decoder_config": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 280},
    },
    "masked_mixer": {"hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 24, "vocab_size": 280},
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "max_position_embeddings": 24,
        "vocab_size": 280,
        "intermediate_size": 16,
        "num_attention_heads": 2,
    },
}
for _name in ("eem", "eem_autoencoder"):
    _RUN[_name]["encoder_config"]["vocab_size"] = 280


@pytest.fixture(scope="session")
def run_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `tokenizer`, `train.jsonl` and `held_out.jsonl`."""
    from modeling_eem.data import train_tokenizer

    folder = tmp_path_factory.mktemp("run_text")
    draw = random.Random(0)
    for name, count in (("train", 10), ("held_out", 4)):
        texts = [" ".join(draw.choices(_TEXT.split(), k=draw.randrange(5, 14))) + "." for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([_TEXT], 280).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def run_values(run_text: Path) -> Callable[..., dict[str, Any]]:
    """The keys of a run file that trains a tiny model of a type (None: no keys of a model) on `run_text`.

    A key whose value is None is left out.
    """

    def values(model_type: str | None = "eem", **changes: Any) -> dict[str, Any]:
        common = {
            "tokenizer": str(run_text / "tokenizer"),
            "train_files": [str(run_text / "train.jsonl")],
            "validation_files": [str(run_text / "held_out.jsonl")],
            "learning_rate": 0.01,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        model = {"model_type": model_type, **_RUN[model_type]} if model_type else {}
        merged = {**model, **common, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    return values


@pytest.fixture
def write_run(run_values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Writes a run file of `run_values`, its output in `tmp_path / "out"`, and returns its path."""

    def write(model_type: str | None = "eem", **changes: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(run_values(model_type, **{"output_dir": str(tmp_path / "out"), **changes})))
        return path

    return write


TASK_TEXT = "The sea was calm and the wind was gone. A ship came home at last, and no one on it spoke a word of rain."


@pytest.fixture(scope="session")
def harness_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of four of lm-eval's tasks, six rows each, as `ORG/NAME` folders of the Hub."""
    words = TASK_TEXT.split()
    pages = [" ".join(words[start : start + 4 * start + 2]) for start in range(6)]
    choices = {"text": ["the rain", "a ship", "home"], "label": ["A", "B", "C"]}
    rows = {
        "EleutherAI/wikitext_document_level/wikitext-2-raw-v1": [{"page": page} for page in pages],
        "allenai/ai2_arc/ARC-Easy": [{"question": page, "choices": choices, "answerKey": "B"} for page in pages],
        "EleutherAI/lambada_openai/default": [{"text": page} for page in pages],
        "openai/gsm8k/main": [{"question": page, "answer": "It is\n#### 4"} for page in pages],
    }
    hub = tmp_path_factory.mktemp("data") / "hub"
    for name, lines in rows.items():
        folder, config = (hub / name).parent, Path(name).name
        (hub / name).mkdir(parents=True)
        files = [{"split": split, "path": f"{config}/{split}.jsonl"} for split in ("train", "validation", "test")]
        for file in files:
            (folder / file["path"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
        card = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{card}---\n")
    return hub


@pytest.fixture(scope="session")
def harness_model(
    tmp_path_factory: pytest.TempPathFactory, backbone_config: Callable[..., Any], eem_config: Callable[..., Any]
) -> Callable[..., Path]:
    """Folders of tiny models with a tokenizer that adds BOS: "masked_mixer", "llama" or "eem"; contexts of 16."""
    from transformers import AutoModelForCausalLM

    from modeling_eem.data import train_tokenizer

    tokenizer = train_tokenizer([TASK_TEXT] * 3, 300)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    parent = tmp_path_factory.mktemp("models")

    def make(kind: str, context: int = CONTEXT) -> Path:
        folder = parent / f"{kind}-{context}"
        if not folder.exists():
            torch.manual_seed(0)
            sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": context, **special}
            if kind == "eem":
                config = eem_config(
                    encoder_config=backbone_config(hidden_size=16, position_alignment="right", **sizes),
                    decoder_config=backbone_config(**sizes | {"max_position_embeddings": context + 1}),
                )
            else:
                config = backbone_config(kind, **sizes)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def offline_environment() -> dict[str, str]:
    """Of a process that finds this environment's `eem` first; offline as the tests are."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}
