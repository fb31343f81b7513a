#!/usr/bin/env bash
# Expected: int8 weight-only quantization makes a language model smaller, or says why not.
# Happens: quantize_ replaces the weights of linear layers alone. Where the output head is tied to the embedding, the embedding stays
#   float and the head becomes an int8 copy: two tables for one. A small model with a large vocabulary becomes LARGER, and training
#   or editing the embedding no longer reaches the head. No warning; config.tie_word_embeddings stays True.
# Version: torchao 0.18.0, transformers 5.23.0, torch 2.13.0.
# Seen: weights 4.26 MB, quantized 6.36 MB; tied True, then False
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 torchao==0.18.0
python - 2>/dev/null <<'PY'
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=32_000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
)
model = LlamaForCausalLM(config).to(torch.bfloat16)


def megabytes():
    seen = {}
    for tensor in model.parameters():
        for part in [getattr(tensor, "qdata", tensor), *([tensor.scale] if hasattr(tensor, "qdata") else [])]:
            seen[part.data_ptr()] = part.numel() * part.element_size()
    return sum(seen.values()) / 1e6


before, was_tied = megabytes(), model.lm_head.weight is model.model.embed_tokens.weight
quantize_(model, Int8WeightOnlyConfig())
after, is_tied = megabytes(), model.lm_head.weight is model.model.embed_tokens.weight
print(f"weights {before:.2f} MB, quantized {after:.2f} MB; tied {was_tied}, then {is_tied};", model.config.tie_word_embeddings)
assert was_tied and model.config.tie_word_embeddings
assert not is_tied and after > before, "the head stays tied now"
PY
