"""Small models with their tokenizer, in folders, as `eem view` is given them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_eem.codec import build_integer_model
from modeling_eem.view.models import ViewedModel, load_viewed

TEXT = "The sea was calm and the wind was gone. A ship came home at last, and no one on it spoke a word of rain."


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory, harness_model: Callable[..., Path]) -> list[str]:
    """An entropy estimation model of 16 tokens, a Llama of 16 and a codec model of 64."""
    long = harness_model("masked_mixer", 64)
    codec = tmp_path_factory.mktemp("built") / "codec"
    model = AutoModelForCausalLM.from_pretrained(long, dtype="float32")
    build_integer_model(model, AutoTokenizer.from_pretrained(long), [TEXT]).save_pretrained(codec)
    return [str(harness_model("eem")), str(harness_model("llama")), str(codec)]


@pytest.fixture(scope="session")
def viewed(model_folders: list[str]) -> dict[str, ViewedModel]:
    """By kind."""
    return {model.kind: model for model in load_viewed(model_folders)}
