#!/usr/bin/env bash
# Expected: save_total_limit deletes the Trainer's own checkpoints, the folders checkpoint-N. What a user sets aside under another name beside
#   them, such as a copy checkpoint-2-keep, stays, and takes no place among the newest.
# Happens: every folder whose name begins with checkpoint- and a number counts as a checkpoint of that number. The copy is deleted with the
#   old checkpoints, without a word. A copy of the newest takes a place within the limit. get_last_checkpoint is strict and passes both by.
# Version: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
# Seen: save_total_limit=1, checkpoint-2 copied to checkpoint-2-keep after step 2; after step 4: ['checkpoint-4']
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

output = Path("run")


class SetAside(TrainerCallback):
    """What a user does in another terminal."""

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.copytree(output / "checkpoint-2", output / "checkpoint-2-keep")


sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([1, 2, 3, 4], [1, 5, 6, 7])]
arguments = TrainingArguments(
    output_dir=str(output), max_steps=4, save_steps=1, save_total_limit=1, report_to="none", disable_tqdm=True,
    use_cpu=True,
)  # fmt: skip
trainer = Trainer(LlamaForCausalLM(LlamaConfig(**sizes)), arguments, train_dataset=rows, callbacks=[SetAside()])
trainer.remove_callback(PrinterCallback)
trainer.train()
left = sorted(path.name for path in output.glob("checkpoint-*"))
print("left after step 4:", left)
assert left == ["checkpoint-4"], "the copy stays now"
PY
