"""A Linear that is fast for few rows too, as in generation, where it is the weights that have to be read.

The BLAS behind PyTorch on a CPU takes `x W^T` for a product of few rows and reads W with one core at a third of what
memory gives (`benchmarks/choice_cases.py` measures it). `W x^T` in two halves, one batched product, is faster by
what that leaves. As in PyTorch's own product of a single row, the last bits depend on where W lies in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows up to which the batched product is the faster one, by measurement; above, the ordinary product catches up.
FEW_ROWS = 32
# Numbers in W from which it is worth while; smaller ones lie in a core's own cache.
LEAST_WEIGHTS = 1 << 16


class FewRowsLinear(nn.Linear):
    """`y = x W^T + b`, as `nn.Linear` in all but speed: on a CPU, in float32, without gradients and with few rows."""

    def forward(self, x: Tensor) -> Tensor:
        if self._has_few_rows(x):
            return few_rows_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)

    def _has_few_rows(self, x: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and 0 < x.numel() <= FEW_ROWS * self.in_features
            and self.weight.numel() >= LEAST_WEIGHTS
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and self.out_features % 2 == 0
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )


def few_rows_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.linear(x [..., I], W [O, I], b)` as `W x^T` in two halves of W; O is even. Returns `[..., O]`, a view."""
    num_outputs, num_inputs = weight_OI.shape
    x_NI = x.reshape(-1, num_inputs)
    x_2IN = x_NI.T.expand(2, num_inputs, len(x_NI))
    weight_2OI = weight_OI.view(2, num_outputs // 2, num_inputs)
    if bias_O is None:
        y_2ON = torch.bmm(weight_2OI, x_2IN)
    else:
        y_2ON = torch.baddbmm(bias_O.view(2, num_outputs // 2, 1), weight_2OI, x_2IN)
    shape = (*x.shape[:-1], num_outputs)
    return y_2ON.view(shape) if len(x_NI) == 1 else y_2ON.view(num_outputs, len(x_NI)).T.view(shape)


# What a head may be to run in chunks: a product and nothing else.
PLAIN_LINEARS = (nn.Linear, FewRowsLinear)

__all__ = ["PLAIN_LINEARS", "FewRowsLinear", "few_rows_linear"]
