#!/usr/bin/env bash
# Expected: LoRA on the output head alone, merged, changes the output head alone, or PEFT says that head and embedding are
#   one tensor in this model.
# Happens: merge_and_unload adds B A to the shared tensor: the embedding changes too, so the merged model computes something
#   else than the adapted one.
# Version: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (a Llama with tie_word_embeddings).
# Seen: embedding changed by the merge: True; adapted and merged logits differ by more than 0.1
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
python - 2>/dev/null <<'PY'
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )
).eval()
embedding, ids = model.model.embed_tokens.weight.detach().clone(), torch.arange(16)[None]
with warnings.catch_warnings(record=True) as caught, torch.no_grad():
    warnings.simplefilter("always")
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()
    before = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    after = merged(input_ids=ids).logits
warned = [str(w.message)[:300] for w in caught if "tie" in str(w.message)]
moved = not torch.equal(embedding, merged.model.embed_tokens.weight)
apart = (before - after).abs().max().item()
print(f"embedding changed: {moved}; adapted and merged logits differ by {apart:.2f}; warnings that speak of ties: {warned}")
assert moved and apart > 0.1, "the merge leaves the embedding alone now"
PY
