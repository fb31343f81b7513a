"""What the progress bar says."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, TrainingArguments

from modeling_eem.training import TokenWeightedTrainingArguments
from modeling_eem.training.callbacks import LEFT_OUT, loss_text


@pytest.mark.parametrize(
    "token_loss, num_labels, text",
    [
        ("cross_entropy", 2, "1.500 nats a token"),
        ("hinge", 2, "hinge 1.500"),
        ("focal", 2, "focal 1.500"),
        ("cross_entropy", 1, "1.500 nats² a token"),
    ],
)
def test_only_cross_entropy_is_nats_a_token(tmp_path: Any, token_loss: str, num_labels: int, text: str) -> None:
    model = SimpleNamespace(config=LlamaConfig(num_labels=num_labels))
    arguments = TokenWeightedTrainingArguments(output_dir=str(tmp_path), token_loss=token_loss, report_to="none")
    assert loss_text({"loss": 1.5}, arguments, model) == text
    left_out = loss_text({"loss": 1.5, LEFT_OUT: 3}, arguments, model)
    assert left_out == f"{text}, 3 tokens without an entropy left out"
    plain = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    assert num_labels == 1 or loss_text({"loss": 1.5}, plain, model) == "1.500 nats a token"
