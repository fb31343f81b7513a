"""What a trainer with a token loss measures: plain cross-entropy, whatever the batches, with no trace in training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedModel

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, MaskedMixerConfig
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments
from modeling_eem.training.resumable_trainer import real_tokens
from modeling_eem.training.trainer import LEFT_OUT

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 16}
SIZES |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
ATTENTION = {"num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}
MIXER, LLAMA = MaskedMixerConfig(**SIZES), LlamaConfig(**SIZES, **ATTENTION)


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "changes, starts_in_evaluation", [({"eval_strategy": "steps", "eval_steps": 1}, False), ({}, True)]
)
def test_measuring_changes_no_step(
    changes: dict[str, Any],
    starts_in_evaluation: bool,
    rows: Dataset,
    arguments: Callable[..., TokenWeightedTrainingArguments],
) -> None:
    """transformers puts the model in training mode only after a step's tokens have been counted."""
    holes = rows.map(
        lambda row: {
            "token_entropies": [float("nan") if i % 3 == 1 else e for i, e in enumerate(row["token_entropies"])]
        }
    )
    logs = []
    for given in ({}, changes):
        model = model_of(MIXER)
        if given is changes and starts_in_evaluation:
            model.eval()
        made = arguments(token_loss="hinge", learning_rate=0.0, max_steps=3, seed=0, **given)
        trainer = TokenWeightedTrainer(model, made, train_dataset=holes, eval_dataset=rows)
        trainer.train()
        logs.append([log for log in trainer.state.log_history if "loss" in log])
    for plain, measured in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", LEFT_OUT):
            assert measured[name] == plain[name], name


def test_predictions_keep_the_order_of_the_rows(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    predicted = [
        TokenWeightedTrainer(
            model_of(MIXER),
            arguments(per_device_eval_batch_size=1, train_sampling_strategy=strategy),
            train_dataset=rows,
        ).predict(rows)
        for strategy in ("random", "group_by_length")
    ]
    assert (predicted[0].label_ids == predicted[1].label_ids).all()
    assert (predicted[0].predictions == predicted[1].predictions).all()


def test_a_router_loss_is_not_measured(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    losses = []
    for coefficient in (1e-9, 0.5):
        experts = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
        model = model_of(MixtralConfig(**SIZES, **ATTENTION, **experts, router_aux_loss_coef=coefficient))
        trainer = TokenWeightedTrainer(model, arguments(), train_dataset=rows, eval_dataset=rows)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_autoencoders_held_out_loss_does_not_depend_on_the_batches(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    torch.manual_seed(1)
    model = EEMAutoencoder(EEMAutoencoderConfig(encoder_config=MIXER, decoder_config=MIXER, bottleneck_size=4))
    losses = [
        TokenWeightedTrainer(
            model, arguments(per_device_eval_batch_size=size), train_dataset=rows, eval_dataset=rows
        ).evaluate()["eval_loss"]
        for size in (1, 3, 8)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("config", [MIXER, LLAMA], ids=["mixer", "llama"])
def test_the_held_out_loss_does_not_depend_on_the_batches(
    config: PreTrainedConfig, rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    """And is plain cross-entropy, whatever the training loss."""
    model = model_of(config)
    nats, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        nats += model.eval()(input_ids=ids, labels=ids, num_items_in_batch=1).loss.item()
        count += len(row["input_ids"]) - 1
    for size in (1, 3, 8):
        args = arguments(per_device_eval_batch_size=size, token_loss="hinge", label_names=["labels"])
        found = TokenWeightedTrainer(model, args, train_dataset=rows, eval_dataset=rows).evaluate()
        assert found["eval_loss"] == pytest.approx(nats / count, rel=1e-6)


def test_rows_that_fill_up_batches_are_no_tokens_trained_on() -> None:
    """The third row has no label: accelerate repeated it. The others' BOS has none either, and counts."""
    labels = torch.tensor([[-100, 5, 6], [-100, 7, -100], [-100, -100, -100]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    assert real_tokens({"attention_mask": mask, "labels": labels}) == 5
    assert real_tokens({"attention_mask": mask}) == 8
