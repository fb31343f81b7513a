"""What the progress bar says, and which process speaks."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, TrainingArguments

from modeling_eem.training import TokenWeightedTrainingArguments, first_process_speaks
from modeling_eem.training.callbacks import loss_text


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
    assert loss_text(1.5, arguments, model) == text
    plain = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    assert num_labels == 1 or loss_text(1.5, plain, model) == "1.500 nats a token"


@pytest.mark.parametrize("rank, seconds", [(None, 0.0), ("0", 0.0), ("1", 0.3)])
def test_the_first_process_speaks_at_once(monkeypatch: pytest.MonkeyPatch, rank: str | None, seconds: float) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    began = time.monotonic()
    with pytest.raises(ValueError, match="bad"), first_process_speaks(patience=0.3):
        raise ValueError("bad")
    assert time.monotonic() - began >= seconds
