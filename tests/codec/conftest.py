"""Integer models of tiny random models, made once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.codec import IntegerModel, build_integer_model
from modeling_eem.data import train_tokenizer

TEXT = "the sea was calm and a ship came over it from far away with grey sails at dawn while we slept. "
CONTEXT = 24
_MIXERS = {
    "flat": {},
    "tied": {"tie_word_embeddings": True},
    "heads": {"num_mixing_heads": 4},
    "taps": {"mixing_kernel_size": 4, "num_mixing_heads": 2},
    # Sizes that fill no vector, word or block.
    "odd": {"hidden_size": 30, "intermediate_size": 67, "num_mixing_heads": 3, "max_position_embeddings": 21},
}
_EEMS = {
    "token": {"code_dtype": "float8_e4m3fn", "bottleneck_size": 6},
    "embedding": {"code_dtype": "int5", "bottleneck_size": 6},
    "combination": {"code_dtype": "float16", "bottleneck_size": None},
}


@pytest.fixture(scope="session")
def float_model() -> Callable[..., PreTrainedModel]:
    """A tiny random model by kind, in evaluation mode."""

    def make(kind: str, vocab_size: int = 280, **changes) -> PreTrainedModel:
        torch.manual_seed(0)
        common = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "pad_token_id": 0,
            **changes,
        }
        if kind in _MIXERS:
            return MaskedMixerForCausalLM(MaskedMixerConfig(**common | _MIXERS[kind])).eval()
        config = EEMConfig(
            encoder_config={**common, "hidden_size": 16, "position_alignment": "right"},
            decoder_config={**common, "max_position_embeddings": CONTEXT + int(kind == "token")},
            memory_introduction=kind,
            **_EEMS[kind],
        )
        return EEMForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def integer_model(float_model: Callable[..., PreTrainedModel]) -> Callable[[str], IntegerModel]:
    """The integer model of `float_model(kind)`."""
    tokenizer = train_tokenizer([TEXT], 280)
    made: dict[str, IntegerModel] = {}

    def make(kind: str) -> IntegerModel:
        if kind not in made:
            model = float_model(kind, len(tokenizer), bos_token_id=tokenizer.bos_token_id)
            made[kind] = build_integer_model(model, tokenizer, [TEXT * 3, TEXT])
        return made[kind]

    return make


@pytest.fixture(scope="session")
def draw_windows() -> Callable[[IntegerModel, int], tuple[list[list[int]], list[list[int]]]]:
    """Random windows of all lengths from 0 on, and contexts that fit before them."""

    def draw(model: IntegerModel, count: int) -> tuple[list[list[int]], list[list[int]]]:
        rng = np.random.default_rng(count)
        windows, contexts = [], []
        for _ in range(count):
            length = int(rng.integers(0, model.context))
            known = int(rng.integers(0, model.context - length))
            windows.append(rng.integers(3, model.sizes.vocab_size, length).tolist())
            contexts.append(rng.integers(3, model.sizes.vocab_size, known).tolist())
        return windows, contexts

    return draw
