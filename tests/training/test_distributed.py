"""What a launch's processes share."""

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy

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
