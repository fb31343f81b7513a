#!/usr/bin/env bash
# Expected: from_pretrained's default dtype="auto" gives weights back in the dtypes they were saved in: a bfloat16 model
#   whose head was kept in float32 comes back so, the file holds both.
# Happens: there is ONE dtype in config.json, that of the first parameters, and all are cast to it, without a warning: the
#   float32 head comes back in bfloat16, rounded. A float64 parameter that comes first turns all the others to float64.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: saved head torch.float32, loaded head torch.bfloat16
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - <<'PY'
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(config).to(torch.bfloat16)
model.lm_head.float()
with torch.no_grad():
    model.lm_head.weight.fill_(1 / 3)
model.save_pretrained("saved")
stored = load_file("saved/model.safetensors")["lm_head.weight"].dtype
loaded = LlamaForCausalLM.from_pretrained("saved").lm_head.weight
print("in the file", stored, "loaded", loaded.dtype, loaded[0, 0].item())
assert stored == torch.float32 and loaded.dtype == torch.bfloat16, "each weight keeps its dtype now"
PY
