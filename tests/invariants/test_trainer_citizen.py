"""What transformers' own Trainer reads off a model, and what it makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.utils.generic import find_labels

from modeling_eem import (
    EEMAutoencoder,
    EEMForCausalLM,
    EEMModel,
    MaskedMixerForCausalLM,
    MaskedMixerForTokenClassification,
    MaskedMixerModel,
)

SCORED = ["mixer", "mixer, tied", "mixer classifier", "eem", "eem, embedding", "eem, llama", "autoencoder"]


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [
        (MaskedMixerModel, []),
        (EEMModel, []),
        (MaskedMixerForCausalLM, ["labels"]),
        (MaskedMixerForTokenClassification, ["labels"]),
        (EEMForCausalLM, ["labels"]),
        (EEMAutoencoder, ["labels"]),
    ],
)
def test_the_labels_are_the_labels(model_class: type[nn.Module], expected: list[str]) -> None:
    """The Trainer takes every parameter with "label" in its name for a column of them."""
    assert find_labels(model_class) == expected


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("output_logits", [False, True])
@pytest.mark.parametrize("name", SCORED)
def test_a_step_without_a_label_has_a_zero_gradient(
    name: str, output_logits: bool, num_items: Any, make_model: Callable[[str], Any], batch: dict[str, Tensor]
) -> None:
    """In chunks and with the whole head; not NaN, which would reach every weight."""
    model = make_model(name).train()
    labels = torch.full_like(batch["input_ids"], -100)
    asked = {} if name == "mixer classifier" else {"output_logits": output_logits}
    loss = model(**batch, labels=labels, num_items_in_batch=num_items, **asked).loss
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_a_regression_without_a_label_has_a_zero_gradient(
    backbone_config: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = MaskedMixerForTokenClassification(backbone_config(num_labels=1))
    loss = model(**batch, labels=torch.full(batch["input_ids"].shape, float("nan"))).loss
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def _rows(num_labels: int | None = None) -> Dataset:
    rows = torch.randint(2, 40, (8, 12)).tolist()
    labels = rows if num_labels is None else [[token % num_labels for token in row] for row in rows]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


def _train(model: nn.Module, rows: Dataset, folder: Path, batch_size: int, **options: Any) -> Trainer:
    """One step of SGD on eight rows."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=8 // batch_size,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", ["mixer", "mixer classifier", "eem", "autoencoder"])
def test_accumulated_steps_are_one(name: str, make_model: Callable[[str], Any], tmp_path: Path) -> None:
    """Eight rows at once or two at a time: the same step."""
    rows = _rows(3 if name == "mixer classifier" else None)
    updates = []
    for batch_size in (8, 2):
        torch.manual_seed(0)
        model = make_model(name).double()  # in float32 the order of the rows' sums shows, more on some processors
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        _train(model, rows, tmp_path, batch_size)
        updates.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    largest = updates[0].abs().max().item()
    assert largest > 1e-3
    torch.testing.assert_close(*updates, rtol=0, atol=1e-6 * largest)  # the loss itself is computed in float32


@pytest.mark.parametrize("name", ["mixer", "mixer classifier", "eem", "autoencoder"])
def test_evaluation_has_a_loss_and_prediction_has_labels(
    name: str, make_model: Callable[[str], Any], tmp_path: Path
) -> None:
    rows = _rows(3 if name == "mixer classifier" else None)
    trainer = _train(make_model(name), rows, tmp_path, 8, eval_strategy="no")
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(rows).label_ids.shape == (8, 12)


def test_noise_on_embeddings_is_that_of_rows_of_text(make_model: Callable[[str], Any]) -> None:
    """NEFTune reads tokens and features off the embedding's output: `[B, T, D]`, whatever lies inside."""
    model, seen = make_model("mixer").train(), []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(output.shape))
    model(torch.randint(2, 40, (5, 12)))
    handle.remove()
    assert seen == [(5, 12, 32)]


def test_neftune_has_the_strength_that_was_asked_for(make_model: Callable[[str], Any], tmp_path: Path) -> None:
    """`alpha / sqrt(T D)`, of 12 tokens and 32 features."""
    model, inputs = make_model("mixer"), []
    clean = model.get_input_embeddings().weight.detach().clone()
    rows = _rows()
    handle = model.model.layers[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    _train(model, rows, tmp_path, 8, neftune_noise_alpha=5.0, data_seed=0)
    handle.remove()
    bound = 5.0 / (12 * 32) ** 0.5
    nearest = torch.cdist(inputs[0].reshape(-1, 32), clean, p=float("inf")).amin(-1)
    assert 0.8 * bound < nearest.max() <= bound * 1.0001
