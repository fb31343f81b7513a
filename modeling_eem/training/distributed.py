"""What several processes of one launch share: sums and means, and the precision of a sharded model's loss."""

from dataclasses import replace
from typing import Literal

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy


def over_processes(accelerator: Accelerator, value: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """The sum or mean over all processes of a tensor that each has; for a single process the tensor itself."""
    return accelerator.reduce(value, reduction)  # pyright: ignore[reportReturnType]  # a tensor for a tensor


def keep_loss_precision(plugin: FullyShardedDataParallelPlugin) -> None:
    """Let a model under FSDP2 return its loss as it computed it.

    accelerate 1.15 rounds all that `forward` returns to the precision of training: in bfloat16 a loss has 8 bits.
    """
    if isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy):  # another class under FSDP1
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
