"""What a launch's processes share."""

from collections.abc import Callable

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy

from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments
from modeling_eem.training.distributed import keep_loss_precision


def test_a_sharded_model_returns_its_loss_unrounded() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    chosen = plugin.mixed_precision_policy
    assert isinstance(chosen, MixedPrecisionPolicy) and chosen.output_dtype == torch.bfloat16
    keep_loss_precision(plugin)
    policy = plugin.mixed_precision_policy
    assert isinstance(policy, MixedPrecisionPolicy)
    assert (policy.param_dtype, policy.output_dtype) == (torch.bfloat16, None)


def test_the_order_of_rows_follows_from_the_seed_alone(
    rows: Dataset, arguments: Callable[..., TokenWeightedTrainingArguments]
) -> None:
    """Once a training has begun, each process has a random stream of its own, and rows must not depend on it."""
    config = MaskedMixerConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, max_position_embeddings=16)
    orders = []
    for seed in (3, 3, 4):
        made = arguments(per_device_train_batch_size=1, seed=seed)
        trainer = TokenWeightedTrainer(MaskedMixerForCausalLM(config), made, train_dataset=rows)
        orders.append([batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()])
        torch.manual_seed(seed + 1)  # as process 1
        assert [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()] == orders[-1]
    assert orders[0] == orders[1] != orders[2]
