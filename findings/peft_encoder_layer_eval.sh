#!/usr/bin/env bash
# Expected: LoRA on the feed-forward part (linear1, linear2) of a torch.nn.TransformerEncoder changes what the model computes in eval
#   mode as it does in training mode.
# Happens: training mode and merge_and_unload() have the adapter; eval mode computes the base model, bit for bit, with gradients on or
#   off. The layer's fast path takes linear1.weight, which a LoRA layer answers with the base weight. Evaluation shows no progress, and
#   generation or scoring with an unmerged adapter is that of the base model. No warning.
#   torch.backends.mha.set_fastpath_enabled(False) helps.
# Version: peft 0.21.2, torch 2.13.0.
# Seen (mean squared error after 100 steps on 8 rows): train mode 0.330, eval mode 1.963, adapter disabled 1.963, eval mode without
#   the fast path 0.330, merged in eval mode 0.330
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
python - 2>/dev/null <<'PY'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
model = get_peft_model(torch.nn.TransformerEncoder(layer, 2), LoraConfig(target_modules=["linear1", "linear2"], r=4))
inputs, targets = torch.randn(8, 3, 16), torch.randn(8, 3, 16)


def error(model):
    return (model(inputs) - targets).square().mean()


optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    error(model).backward()
    optimizer.step()

seen = {"train mode": error(model.train()).item(), "eval mode": error(model.eval()).item()}
with torch.no_grad():
    seen["eval mode, no_grad"] = error(model).item()
    with model.disable_adapter():
        seen["disabled"] = error(model).item()
    torch.backends.mha.set_fastpath_enabled(False)
    seen["eval mode, no fast path"] = error(model).item()
    torch.backends.mha.set_fastpath_enabled(True)
    seen["merged, eval mode"] = error(model.merge_and_unload().eval()).item()
print({name: round(value, 3) for name, value in seen.items()})
trained = seen["train mode"]
assert trained < seen["disabled"] / 2 and abs(seen["merged, eval mode"] - trained) < 0.01
assert abs(seen["eval mode, no fast path"] - trained) < 0.01
assert seen["eval mode"] == seen["eval mode, no_grad"] == seen["disabled"], "eval mode has the adapter now"
PY
