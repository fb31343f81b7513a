"""Bits per byte and token accuracy: the local modules, and what `Trainer.evaluate` makes of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction, LlamaConfig, LlamaForCausalLM, TrainerState

from modeling_eem.bits import CodeLength, window_length_bits
from modeling_eem.data import CausalCollator
from modeling_eem.evaluation import held_out
from modeling_eem.training import RunTrainer, prepare_run
from modeling_eem.training.run_outputs import learning_curve
from modeling_eem.training.token_metrics import EntropyMetrics, TokenMetrics, load_metric


def test_bits_per_byte_is_that_of_a_code_length() -> None:
    lengths = [CodeLength(nll_nats=3.5, code_bits=8, side_bits=4, num_bytes=5, num_tokens=2)]
    lengths.append(CodeLength(nll_nats=0.25, code_bits=8, side_bits=0, num_bytes=3, num_tokens=1))
    found = load_metric("bits_per_byte").compute(
        predictions=[length.nll_nats for length in lengths],
        references=[length.num_bytes for length in lengths],
        code_bits=16,
        side_bits=4,
    )
    assert found == {"bits_per_byte": pytest.approx(sum(lengths, CodeLength()).bits_per_byte, rel=1e-12)}
    assert load_metric("bits_per_byte").compute(predictions=[math.log(2)], references=[1]) == {"bits_per_byte": 1.0}


def test_token_accuracy_leaves_out_what_is_not_scored() -> None:
    accuracy = load_metric("token_accuracy").compute(predictions=[3, 4, 5, 6], references=[-100, 4, 5, 5])
    assert accuracy == {"token_accuracy": pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="predictions must be token ids"):
        load_metric("token_accuracy").compute(predictions=[3.9, 4.2], references=[3, 4])


def padded_rows(rows: Dataset, pad_token_id: int) -> Dataset:
    """Rows as `eem data prepare --padding right` stores them."""

    def pad(row: dict[str, Any]) -> dict[str, Any]:
        length = len(row["input_ids"])
        ids = [*row["input_ids"], *[pad_token_id] * (24 - length)]
        document = [*row["document_ids"], *[-1] * (24 - length)]
        return {"input_ids": ids, "document_ids": document, "attention_mask": [int(i < length) for i in range(24)]}

    return Dataset.from_list([row | pad(row) for row in rows])


def test_a_code_length_counts_no_padding_of_stored_rows(write_run: Callable[..., Path]) -> None:
    run = prepare_run(write_run("eem"))
    stored = replace(run, held_out_rows=padded_rows(run.held_out_rows, run.collator.pad_token_id))
    length, of_stored = held_out(run), held_out(stored)
    assert any(len(row) < 24 for row in run.held_out_rows["input_ids"])
    assert of_stored.num_tokens == length.num_tokens and of_stored.side_bits == length.side_bits
    assert of_stored.bits_per_byte == pytest.approx(length.bits_per_byte, rel=1e-6)


def test_a_learning_curve_counts_no_padding_of_stored_rows(write_run: Callable[..., Path]) -> None:
    run = prepare_run(write_run("eem", random_prefix_probability=0.5))
    padded = replace(run, train_rows=padded_rows(run.train_rows, run.collator.pad_token_id))
    tokens = sum(len(row) - 1 for row in run.train_rows["input_ids"])
    assert tokens < 23 * len(run.train_rows)
    state = TrainerState(log_history=[{"step": 1, "num_input_tokens_seen": 7, "loss": 2.0}])
    num_bytes, rows = sum(run.train_rows["num_bytes"]), len(run.train_rows)
    expected = (2.0 / math.log(2) * tokens + run.code_bits * rows) / num_bytes
    for each in (run, padded):
        assert learning_curve(each, state).train == [(7, pytest.approx(expected))]


@pytest.mark.parametrize("is_shifted", [True, False])
@pytest.mark.parametrize("is_tuple", [True, False])
def test_losses_stand_at_their_tokens(is_shifted: bool, is_tuple: bool) -> None:
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 4, 0, -100]])
    metrics = TokenMetrics(torch.tensor([1, 2, 3, 4, 5]), max_length=4, code_bits=10.0, is_shifted=is_shifted)
    losses, first = metrics.preprocess((logits, torch.zeros(1)) if is_tuple else logits, labels)
    nats = -logits.log_softmax(-1)
    places = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    for row, token in places:
        output = token - is_shifted
        assert losses[row, token] == pytest.approx(nats[row, output, labels[row, token]].item(), rel=1e-5)
        assert first[row, token] == logits[row, output].argmax()

    found = metrics(EvalPrediction((losses.numpy(), first.numpy()), labels.numpy()))
    total = sum(losses[place].item() for place in places)
    hits = sum(int(first[place] == labels[place]) for place in places)
    num_bytes = 2 + 3 + 4 + 5 + 1
    bits = total / math.log(2) + 2 * 10.0 + window_length_bits(4, 4) + window_length_bits(3, 4)
    assert found["cross_entropy"] == pytest.approx(total / 5, rel=1e-6)
    assert found["token_accuracy"] == hits / 5
    assert found["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-6)


def test_without_a_code_format_bits_are_not_made_up() -> None:
    labels = np.array([[-100, 1]])
    metrics = TokenMetrics(torch.ones(2), max_length=2, code_bits=None)
    found = metrics(EvalPrediction((np.ones((1, 2), np.float32), labels), labels))
    assert found == {"cross_entropy": 1.0, "token_accuracy": 1.0} and metrics.key == "eval_cross_entropy"


def test_entropies_are_scored_where_they_are_known() -> None:
    nan = float("nan")
    labels = (np.array([[-100, 1, 2, -100]]), np.array([[nan, 2.0, nan, 3.0]], np.float32))
    scores = torch.tensor([[[1.5], [7.0], [8.0], [9.0]]])
    metrics = EntropyMetrics(is_shifted=True)
    predictions = metrics.preprocess(scores, tuple(map(torch.from_numpy, labels))).numpy()
    assert metrics(EvalPrediction(predictions, labels)) == {"mean_squared_error": 0.25}


@pytest.mark.parametrize("model_type", ["eem", "eem_autoencoder", "masked_mixer", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_evaluate_is_the_held_out_code_length(
    write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model_type: str, side: str
) -> None:
    """And gathers numbers a token, never logits; and cuts no held-out row."""
    run = prepare_run(write_run(model_type, padding_side=side, per_device_eval_batch_size=3))
    trainer = RunTrainer(run)
    gathered: list[Any] = []
    whole = trainer.gather_function
    monkeypatch.setattr(trainer, "gather_function", lambda values: gathered.append(values) or whole(values))
    monkeypatch.setattr(trainer.accelerator, "gather_for_metrics", trainer.gather_function)
    found = trainer.evaluate()
    length = held_out(run)
    assert found["eval_bits_per_byte"] == pytest.approx(length.bits_per_byte, rel=1e-6)
    assert found["eval_cross_entropy"] == pytest.approx(length.cross_entropy, rel=1e-6)
    assert 0 <= found["eval_token_accuracy"] < 1
    tensors = [value for values in gathered for value in (values if isinstance(values, tuple) else (values,))]
    assert len(tensors) >= 4 and all(tensor.ndim < 3 for tensor in tensors)


def test_foreign_trainers_take_the_metrics(tmp_path: Path) -> None:
    """The same two functions on a plain Trainer, as the documentation shows."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    metrics = TokenMetrics(torch.full((12,), 2), max_length=8, code_bits=0.0)
    trainer = Trainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
        data_collator=CausalCollator(pad_token_id=0, vocab_size=12, max_length=8),
        eval_dataset=Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 4, 5, 6, 7]]}),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=metrics.preprocess,
    )
    found = trainer.evaluate()
    assert found["eval_cross_entropy"] == pytest.approx(found["eval_loss"], rel=1e-5)
    bits = 6 * found["eval_cross_entropy"] / math.log(2) + 2 * window_length_bits(3, 8)
    assert found["eval_bits_per_byte"] == pytest.approx(bits / 12, rel=1e-5)
