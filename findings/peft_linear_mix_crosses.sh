#!/usr/bin/env bash
# Expected: add_weighted_adapter of two LoRAs with weights 0.5 and 0.5 and combination_type="linear" changes the weights by the mean
#   of what the two change.
# Happens: it adds up the A's and the B's, and only then multiplies: half of each adapter's B of the other one's A comes in. The result
#   is as far from the mean as the mean is large. combination_type="cat" is the mean exactly, "svd" nearly.
# Version: peft 0.21.2, torch 2.13.0.
# Seen (distance from the mean, relative to its size): linear 1.06, cat 6e-08, svd of full rank 5e-07
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
python - 2>/dev/null <<'PY'
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
config = LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)
model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(16, 16)), config, adapter_name="first")
model.add_adapter("second", config)
layer = model.base_model.model[0]
mean = (layer.get_delta_weight("first") + layer.get_delta_weight("second")) / 2
apart = {}
for kind, options in (("linear", {}), ("cat", {}), ("svd", {"svd_rank": 8})):
    model.add_weighted_adapter(["first", "second"], [0.5, 0.5], kind, combination_type=kind, **options)
    apart[kind] = ((layer.get_delta_weight(kind) - mean).norm() / mean.norm()).item()
print("distance from the mean, relative to its size:", apart)
assert apart["cat"] < 1e-5 and apart["svd"] < 1e-5
assert apart["linear"] > 0.1, "linear is the mean now"
PY
