#!/usr/bin/env bash
# Expected: in a custom autograd function ctx.needs_input_grad says which gradients THIS backward needs, so that others are not computed.
# Happens: it says which inputs required gradients in the forward. autograd.grad(loss, x) of a function of x and w has True for both: the
#   weight's gradient, often the dearer half, is computed and thrown away. PyTorch's own functions skip it.
# Version: torch 2.13.0.
# Seen: needs_input_grad for autograd.grad(.., x): (True, True)
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import torch

needed = []


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        needed.append(ctx.needs_input_grad)
        return gradient @ weight.T, x.T @ gradient


x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
torch.autograd.grad(Product.apply(x, weight).sum(), x)
with torch.profiler.profile() as profile:
    torch.autograd.grad((x @ weight).sum(), x)
own = sum(event.count for event in profile.key_averages() if event.key == "aten::mm")
print("needs_input_grad:", *needed, "products of torch's own forward and backward:", own)
assert own == 2, "PyTorch's own function takes one product forward, one backward"
assert needed == [(True, True)], "needs_input_grad knows what was asked for now"
PY
