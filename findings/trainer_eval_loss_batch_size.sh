#!/usr/bin/env bash
# Expected: the Trainer's eval_loss of a causal model is the mean loss a token, whatever the batch size of evaluation;
#   its training loss is (since 4.46), and people report exp(eval_loss) as perplexity.
# Happens: each batch's mean weighs by its number of ROWS. With rows of unequal length eval_loss depends on
#   per_device_eval_batch_size and on the rows' order, and is no perplexity of anything.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: eval_loss 5.517 (batches of 1), 5.669 (2), 5.634 (8) for the same model and rows
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(4)
rows = []
for length in (4, 40, 6, 30, 10, 20, 5, 50):
    ids, rest = torch.randint(0, 64, (length,)), 60 - length
    mask = torch.cat([torch.ones(length), torch.zeros(rest)]).long()
    padded = torch.cat([ids, torch.zeros(rest, dtype=torch.long)])
    rows.append({"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)})
losses = {}
for size in (1, 2, 8):
    arguments = TrainingArguments("out", per_device_eval_batch_size=size, use_cpu=True, report_to="none", disable_tqdm=True)
    losses[size] = round(Trainer(model=model, args=arguments, eval_dataset=rows).evaluate()["eval_loss"], 4)
print("eval_loss by batch size:", losses)
assert abs(losses[1] - losses[2]) > 0.01 and abs(losses[2] - losses[8]) > 0.01, "eval_loss is a mean over tokens now"
PY
