#!/usr/bin/env bash
# Expected: MixedPrecisionPolicy(param_dtype=torch.bfloat16) of FSDP2 computes layers in bfloat16, as autocast does; a float32 target or weight
#   that the model's forward takes for its loss is the caller's.
# Happens: every floating point tensor among forward's arguments is rounded to bfloat16 first, targets, weights of tokens and positions
#   included (cast_forward_inputs, on by default, and accelerate leaves it on). The loss is of other targets. No warning.
# Version: torch 2.13.0.
# Seen: target 1003.7 is 1004.0 in forward under FSDP2 with bfloat16, 1003.7 under autocast
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, targets):
        self.seen = targets
        return (self.linear(x).float() - targets).square().mean()


dist.init_process_group("gloo", init_method=f"file://{os.path.abspath('store')}", rank=0, world_size=1)
batch = {"x": torch.ones(1, 2), "targets": torch.full((1, 1), 1003.7)}
plain = Regression()
with torch.autocast("cpu", dtype=torch.bfloat16):
    plain(**batch)
sharded = fully_shard(Regression(), mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
sharded(**batch)
print("target in forward: autocast", plain.seen.item(), plain.seen.dtype, "FSDP2", sharded.seen.item(), sharded.seen.dtype, flush=True)
assert plain.seen.dtype == torch.float32
assert sharded.seen.dtype == torch.bfloat16 and sharded.seen.item() == 1004, "targets stay as they are now"
os._exit(0)
PY
