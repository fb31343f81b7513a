#!/usr/bin/env bash
# Expected: the order of training rows comes from seed or data_seed of TrainingArguments, for every train_sampling_strategy.
# Happens: with train_sampling_strategy="batch_rebalance" it does not: runs with other seeds read the same rows in the same order, in every epoch.
#   The spread of a result over seeds then holds the weights' start alone, and no longer the order of the data. No warning.
# Version: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
# Seen: of 16 rows, the order of seeds 1 and 2 is the same with batch_rebalance, another with random and with group_by_length
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
rows = [{"input_ids": [row] * (row % 5 + 2)} for row in range(16)]


def order(strategy, seed):
    """The rows that two epochs read, batch by batch."""
    read = []

    def collate(batch):
        read.append(sorted(row["input_ids"][0] for row in batch))
        return dict.fromkeys(("input_ids", "labels"), torch.zeros(len(batch), 4, dtype=torch.long))

    arguments = TrainingArguments(
        output_dir="run", num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        train_sampling_strategy=strategy, seed=seed, data_seed=seed, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return read


same = {}
for strategy in ("random", "group_by_length", "batch_rebalance"):
    first, second = order(strategy, 1), order(strategy, 2)
    same[strategy] = first == second
    print(strategy, "seed 1:", first[:2], "seed 2:", second[:2])
print("same order for both seeds:", same)
assert same == {"random": False, "group_by_length": False, "batch_rebalance": True}, "batch_rebalance has a seed now"
PY
