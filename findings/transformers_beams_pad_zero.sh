#!/usr/bin/env bash
# Expected: generate fills up the rows of a batch that ended early with pad_token_id, with beams as without.
# Happens: where pad_token_id is 0, as of T5 and BERT, beam search fills them up with the end-of-text token: rows then end many times, and
#   sequences != pad_token_id is true to the end. Lengths, masks, and labels made of generated rows are wrong. Padding with any other id is right.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: pad_token_id 0, end 5: greedy [1, 6, 5, 0, 0, 0], 2 beams [1, 6, 5, 5, 5, 5]; with pad_token_id 2 both are filled with 2
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
prompts = torch.tensor([[1, 6], [1, 3]])


def generated(padding, beams):
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=5, pad_token_id=padding, initializer_range=0.5)
    model = LlamaForCausalLM(config).eval()
    if padding == 0:
        assert model.generation_config.pad_token_id == 0
    row = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=4, do_sample=False, num_beams=beams,
        pad_token_id=padding,
    )[0]  # fmt: skip
    return row.tolist(), int((row != padding).sum())


found = {(padding, beams): generated(padding, beams) for padding in (0, 2) for beams in (1, 2)}
for (padding, beams), (row, length) in found.items():
    print(f"pad_token_id {padding}, {beams} beams: {row}, {length} tokens are not padding")
assert found[0, 1] == ([1, 6, 5, 0, 0, 0], 3)
assert found[2, 2][0][:4] == [1, 6, 5, 2], "an id other than 0 is used with beams"
assert found[0, 2] == ([1, 6, 5, 5, 5, 5], 6), "beams pad with 0 now"
PY
