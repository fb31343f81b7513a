#!/usr/bin/env bash
# Expected: model.disable_input_require_grads() takes back what enable_input_require_grads() did, however often that was called: afterwards
#   the embeddings of a model whose weights are frozen carry no gradient.
# Happens: each call hangs one more hook on the embeddings and remembers the last ones only. Two calls are common: gradient checkpointing
#   of a PEFT model calls it once more than the user did. After disabling, the first hook still makes every embedding require a gradient,
#   so that inference with gradients on keeps activations, and a forward pass of a wholly frozen model has a graph.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: enabled once: hooks left 0, output requires grad False; enabled twice: hooks left 1, output requires grad True
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
seen = {}
for calls in (1, 2):
    model = LlamaForCausalLM(LlamaConfig(**sizes)).requires_grad_(False)
    for _ in range(calls):
        model.enable_input_require_grads()
    model.disable_input_require_grads()
    embeddings = model.get_input_embeddings()
    output = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    seen[calls] = (len(embeddings._forward_hooks), output.requires_grad)
    print("enabled", calls, "times: hooks left", seen[calls][0], "output requires grad", seen[calls][1])
assert seen == {1: (0, False), 2: (1, True)}, "disabling takes all hooks back now"
PY
