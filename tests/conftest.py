"""Every test runs offline and from the same seeds; what tests of several files build is built here."""

import os

# Read when the libraries are imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
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
