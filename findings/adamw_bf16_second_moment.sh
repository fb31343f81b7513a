#!/usr/bin/env bash
# Expected: AdamW's running mean of squared gradients, v = 0.999 v + 0.001 g^2, forgets old gradients in thousands of steps.
# Happens: for bfloat16 weights the state is bfloat16 too, and 0.999 v rounds back to v: it never falls. One large gradient
#   shrinks all later steps of that weight for good. Nor does it rise to g^2: it stops at half. foreach, fused: the same.
# Version: torch 2.13.0.
# Seen: v after one gradient of 1 and 5000 of 0: 0.00099945 (float32: 6.7e-06); after 5000 gradients of 1: 0.5 (float32: 0.993)
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch


def second_moment(dtype, gradients, **way):
    weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0, betas=(0.9, 0.999), **way)
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return optimizer.state[weight]["exp_avg_sq"][0].item()


once, steady = [1.0] + [0.0] * 5000, [1.0] * 5000
forgets = second_moment(torch.float32, once)
kept = {name: second_moment(torch.bfloat16, once, **{name: True}) for name in ("foreach", "fused")}
level, low = second_moment(torch.float32, steady), second_moment(torch.bfloat16, steady)
print(f"after one gradient of 1 and 5000 of 0: float32 {forgets:.2g}, bfloat16 {kept}")
print(f"after 5000 gradients of 1: float32 {level:.3f}, bfloat16 {low}")
assert forgets < 1e-5 and level > 0.99
assert all(value > 9e-4 for value in kept.values()) and low == 0.5, "the state in bfloat16 moves now"
PY
