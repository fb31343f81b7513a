#!/usr/bin/env bash
# Expected: position_ids that start again at 0 separate the documents of a packed row, as transformers says they do; an
#   attention mask of ones, or the cache that a forward makes by default, changes nothing about that.
# Happens: documents are separate ONLY without an attention_mask AND with use_cache=False. With the default use_cache or with a
#   mask of ones, the second document sees the first one. No warning.
# Version: transformers 5.23.0, torch 2.13.0 (sdpa attention).
# Seen (largest difference from the document alone): default 0.15; ones 0.15; use_cache=False 6e-08; both 0.15
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(config).eval()
first, second = torch.randint(0, 64, (1, 6)), torch.randint(0, 64, (1, 5))
row = torch.cat([first, second], dim=1)
positions = torch.cat([torch.arange(6), torch.arange(5)])[None]
alone = model(second).logits
ones = torch.ones_like(row)
leaks = {}
for name, arguments in {
    "default": {},
    "ones": {"attention_mask": ones},
    "use_cache=False": {"use_cache": False},
    "both": {"attention_mask": ones, "use_cache": False},
}.items():
    packed = model(row, position_ids=positions, **arguments).logits[:, 6:]
    leaks[name] = (packed - alone).abs().max().item()
print("largest difference from the document alone:", {name: f"{leak:.2g}" for name, leak in leaks.items()})
assert leaks.pop("use_cache=False") < 1e-5
assert min(leaks.values()) > 0.01, "packed documents are separate in more cases now"
PY
