"""What a trainer with a token loss measures: plain cross-entropy, whatever the batches, with no trace in training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments
from modeling_eem.training.trainer import LEFT_OUT

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 16}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LLAMA = {**SIZES, **SPECIAL, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}


def mixer() -> MaskedMixerForCausalLM:
    torch.manual_seed(1)
    return MaskedMixerForCausalLM(MaskedMixerConfig(**SIZES, **SPECIAL))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def mixtral(coefficient: float = 0.5) -> MixtralForCausalLM:
    torch.manual_seed(1)
    moe = {"num_local_experts": 4, "num_key_value_heads": 2, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**LLAMA, **moe, router_aux_loss_coef=coefficient))


@pytest.fixture
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 9, (8,), generator=generator).tolist()
    return Dataset.from_list(
        [
            {
                "input_ids": [1, *torch.randint(2, 40, (length - 1,), generator=generator).tolist()],
                "token_entropies": [float("nan"), *(4 * torch.rand(length - 1, generator=generator)).tolist()],
            }
            for length in lengths
        ]
    )


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TokenWeightedTrainingArguments]:
    def make(kind: type = TokenWeightedTrainingArguments, **changes: Any) -> TokenWeightedTrainingArguments:
        given = {
            "per_device_train_batch_size": 8,
            "max_steps": 1,
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return kind(output_dir=str(tmp_path), **given | changes)

    return make


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
        model = mixer()
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
            mixer(), arguments(per_device_eval_batch_size=1, train_sampling_strategy=strategy), train_dataset=rows
        ).predict(rows)
        for strategy in ("random", "group_by_length")
    ]
    assert (predicted[0].label_ids == predicted[1].label_ids).all()
    assert (predicted[0].predictions == predicted[1].predictions).all()


def test_a_router_loss_is_not_measured(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    measured = [
        TokenWeightedTrainer(mixtral(coefficient), arguments(), train_dataset=rows, eval_dataset=rows).evaluate()
        for coefficient in (1e-9, 0.5)
    ]
    assert measured[0]["eval_loss"] == pytest.approx(measured[1]["eval_loss"], rel=1e-5)


def test_an_autoencoders_held_out_loss_does_not_depend_on_the_batches(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    torch.manual_seed(1)
    backbone = MaskedMixerConfig(**SIZES, **SPECIAL)
    model = EEMAutoencoder(EEMAutoencoderConfig(encoder_config=backbone, decoder_config=backbone, bottleneck_size=4))
    losses = [
        TokenWeightedTrainer(
            model, arguments(per_device_eval_batch_size=size), train_dataset=rows, eval_dataset=rows
        ).evaluate()["eval_loss"]
        for size in (1, 3, 8)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("build", [mixer, llama])
def test_the_held_out_loss_does_not_depend_on_the_batches(
    build: Callable[[], PreTrainedModel], rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    """And is plain cross-entropy, whatever the training loss."""
    model = build()
    nats, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        nats += model.eval()(input_ids=ids, labels=ids, num_items_in_batch=1).loss.item()
        count += len(row["input_ids"]) - 1
    for size in (1, 3, 8):
        args = arguments(per_device_eval_batch_size=size, token_loss="hinge", label_names=["labels"])
        found = TokenWeightedTrainer(model, args, train_dataset=rows, eval_dataset=rows).evaluate()
        assert found["eval_loss"] == pytest.approx(nats / count, rel=1e-6)
