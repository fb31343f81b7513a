#!/usr/bin/env bash
# Expected: Linear8bitLt (LLM.int8()) computes the same on a CPU as on a GPU: weights and inputs in 8 bits.
# Happens: on a CPU the weights alone are rounded; inputs stay float. What 8 bits cost a model is underestimated on a CPU, and
#   evaluations on CPU and GPU differ. No warning.
# Version: bitsandbytes 0.50.2, torch 2.13.0.
# Seen: the layer differs from weights rounded by 1e-7, from weights and inputs rounded by 7e-3; its error is 0.0039, with inputs
#   rounded too it is 0.0081
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 bitsandbytes==0.50.2
python - 2>/dev/null <<'PY'
import torch
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn import Linear8bitLt

torch.manual_seed(0)
linear, x = torch.nn.Linear(256, 64, bias=False), torch.randn(32, 256)
layer = Linear8bitLt(256, 64, bias=False, has_fp16_weights=False, threshold=0.0)
layer.load_state_dict(linear.state_dict())
layer = layer.to("cpu")


def rounded(values):
    integers, scales, _ = int8_vectorwise_quant(values.half())
    return integers.float() * scales[:, None].float() / 127


def apart(y):
    return ((layer(x) - y).norm() / y.norm()).item()


with torch.no_grad():
    weights_alone, both = apart(x @ rounded(linear.weight).T), apart(rounded(x) @ rounded(linear.weight).T)
    error = {name: ((y - linear(x)).norm() / linear(x).norm()).item() for name, y in (
        ("layer", layer(x)), ("both in 8 bits", rounded(x) @ rounded(linear.weight).T)
    )}
print(f"layer against weights rounded {weights_alone:.1e}, against weights and inputs rounded {both:.1e}; errors", error)
assert weights_alone < both / 10, "inputs are rounded on a CPU now"
PY
