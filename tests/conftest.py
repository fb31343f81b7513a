"""Every test runs offline and from the same seeds."""

import os

# Read when the libraries are imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from transformers import set_seed


@pytest.fixture(autouse=True)
def seed() -> None:
    set_seed(0)
