#!/usr/bin/env bash
# Expected: save_total_limit=1 with metric_for_best_model, and without load_best_model_at_end, keeps the newest checkpoint, to go on from
#   (beside the best one, as the documentation says for load_best_model_at_end, or alone).
# Happens: while it trains, both are kept. When train() ends, the newest is deleted and the best one stays, though no one asked for the
#   best to be loaded. The same command with more steps goes on from the best step and trains the rest of the old run again; the weights
#   in memory, those of the last step, are on disk nowhere unless they are saved by hand. With save_total_limit=2 both stay.
# Version: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
# Seen: eval_loss lowest after step 1; checkpoints after train(): limit 1 ['checkpoint-1'], limit 2 ['checkpoint-1', 'checkpoint-4']
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([1, 2, 3, 4], [1, 5, 6, 7])]


def kept(limit):
    torch.manual_seed(0)
    output = Path(f"limit-{limit}")
    arguments = TrainingArguments(
        output_dir=str(output), max_steps=4, save_steps=1, eval_strategy="steps", eval_steps=1, learning_rate=1.0,
        per_device_train_batch_size=1, save_total_limit=limit, metric_for_best_model="loss", report_to="none",
        disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
    )  # fmt: skip
    # Held out: the other row, so that each step makes it worse.
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**sizes)), arguments, train_dataset=rows[:1], eval_dataset=rows[1:])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    return losses, trainer.state.best_global_step, sorted(path.name for path in output.glob("checkpoint-*"))


for limit in (1, 2):
    losses, best, names = kept(limit)
    print("limit", limit, "held-out losses", [round(loss, 2) for loss in losses], "best step", best, "kept", names)
    assert best == 1, "another step is the best one: this script must find another example"
    assert names == (["checkpoint-1"] if limit == 1 else ["checkpoint-1", "checkpoint-4"]), "others are kept now"
PY
