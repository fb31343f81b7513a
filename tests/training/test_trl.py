"""TRL's SFTTrainer with a token loss and a LoRA adapter."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

pytest.importorskip("trl")

from trl import SFTConfig, SFTTrainer

from modeling_eem.data import CausalCollator
from modeling_eem.training import (
    TokenLossArguments,
    TokenLossMixin,
    TokenWeightedTrainer,
    TokenWeightedTrainingArguments,
)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass
class Config(TokenLossArguments, SFTConfig):
    """SFT's arguments with a token loss."""


class TokenLossSFT(TokenLossMixin, SFTTrainer):
    """SFT with a token loss."""


@pytest.fixture
def tokenizer(run_text: Path) -> Any:
    return AutoTokenizer.from_pretrained(run_text / "tokenizer")


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=280, max_position_embeddings=32, initializer_range=0.2, **SIZES))


def adapter() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., Any]:
    def make(kind: type, **changes: Any) -> Any:
        given = {
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 0.1,
            "optim": "sgd",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
        }
        return kind(output_dir=str(tmp_path), **given | changes)

    return make


def adapters(trained: Any) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in trained.named_parameters() if "lora" in name}


def test_entropies_reach_the_loss_as_they_do_without_trl(arguments: Callable[..., Any], tokenizer: Any) -> None:
    """Rows of tokens with their entropies and our collator: the steps are TokenWeightedTrainer's."""
    draw = torch.Generator().manual_seed(0)
    rows = Dataset.from_list(
        [
            {
                "input_ids": [1, *torch.randint(2, 280, (n,), generator=draw).tolist()],
                "token_entropies": [math.nan, *(3 * torch.rand(n, generator=draw)).tolist()],
            }
            for n in (5, 9, 7, 6, 8, 8, 4, 10)
        ]
    )
    collator = CausalCollator(pad_token_id=0, vocab_size=280, max_length=32)
    expected = TokenWeightedTrainer(
        get_peft_model(model(), adapter()),
        arguments(TokenWeightedTrainingArguments, token_loss="hinge"),
        train_dataset=rows,
        data_collator=collator,
    )
    before = adapters(expected.model)
    expected.train()
    trainer = TokenLossSFT(
        model(),
        arguments(Config, token_loss="hinge"),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    trainer.model.load_state_dict(before, strict=False)  # the adapters that the other began with
    frozen = {name: values.clone() for name, values in trainer.model.named_parameters() if "lora" not in name}
    trainer.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] != losses[0][1]
    for (name, values), wanted in zip(adapters(trainer.model).items(), adapters(expected.model).values()):
        torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-6)
        assert not torch.equal(values, before[name])
    assert all(torch.equal(values, frozen[n]) for n, values in trainer.model.named_parameters() if n in frozen)


def test_text_trains_and_is_measured_by_cross_entropy(
    arguments: Callable[..., Any], tokenizer: Any, run_text: Path
) -> None:
    """TRL's own tokens and collator, for a loss without entropies; evaluation is a mean over tokens."""
    rows = Dataset.from_json(str(run_text / "train.jsonl"), cache_dir=str(arguments(Config).output_dir))
    changes = {"per_device_train_batch_size": 10, "per_device_eval_batch_size": 3, "max_steps": 1, "max_length": 24}
    trainer = TokenLossSFT(
        model(),
        arguments(Config, token_loss="focal", focal_gamma=5.0, **changes),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    measured = trainer.evaluate()["eval_loss"]
    trained = trainer.model.eval()
    nats = []
    for row in trainer.eval_dataset:
        ids = torch.tensor([row["input_ids"]])
        logits = trained(input_ids=ids).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
    assert len(rows) == 10 and measured == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    trainer.train()
    (first,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    focal = sum((1 - math.exp(-loss)) ** 5 * loss for loss in nats) / len(nats)
    assert first == pytest.approx(focal, rel=1e-4) and focal < measured
