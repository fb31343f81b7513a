#!/usr/bin/env bash
# Expected: bf16_full_eval=True evaluates in bfloat16 and gives the float32 weights back for training and saving.
# Happens: Trainer.evaluate() outside train() turns the model to bfloat16 for good: a baseline evaluation before training
#   makes the whole training run in pure bfloat16, and save_model after a final one writes rounded weights. No warning.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen: train, evaluate: float32, bfloat16; evaluate, train: bfloat16, bfloat16
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
arguments = TrainingArguments("out", bf16_full_eval=True, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)


def dtypes(*steps: str) -> list[torch.dtype]:
    model = LlamaForCausalLM(config)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    seen = []
    for step in steps:
        getattr(trainer, step)()
        seen.append(model.lm_head.weight.dtype)
    return seen


after, before = dtypes("train", "evaluate"), dtypes("evaluate", "train")
print("train, evaluate:", *after, "evaluate, train:", *before)
assert after == [torch.float32, torch.bfloat16] and before == [torch.bfloat16] * 2, "the weights are given back now"
PY
