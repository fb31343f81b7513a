#!/usr/bin/env bash
# Expected: an optimizer's states saved in float32 are float32 after load_state_dict, whatever the parameters are.
# Happens: floating point states are cast to the PARAMETER's dtype. Whoever keeps float32 moments for bfloat16 weights (an optimizer of one's
#   own, or a checkpoint of float32 weights resumed in bfloat16) has them rounded to 8 bits at every resume. Only "step" is kept.
# Version: torch 2.13.0.
# Seen: moment 0.1234567 in float32 before saving, 0.12353515625 in bfloat16 after loading
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import torch


class Float32Moments(torch.optim.Optimizer):
    """Keeps a float32 state for parameters of any dtype."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["moment"] = torch.full_like(parameter, 0.1234567, dtype=torch.float32)


weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
optimizer = Float32Moments([weight])
optimizer.step()
torch.save(optimizer.state_dict(), "optimizer.pt")
before = optimizer.state[weight]["moment"]
resumed = Float32Moments([weight])
resumed.load_state_dict(torch.load("optimizer.pt"))
after = resumed.state[weight]["moment"]
print("before", before.dtype, before[0].item(), "after", after.dtype, after[0].item())
assert before.dtype == torch.float32
assert after.dtype == torch.bfloat16 and after[0] != before[0], "states keep their dtype now"
PY
