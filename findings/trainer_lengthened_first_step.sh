#!/usr/bin/env bash
# Expected: a training that ended after 3 of 3 steps and goes on from its last checkpoint with max_steps=6 trains steps 4, 5 and 6 with
#   the learning rates that a schedule over 6 steps has there: 3/6, 2/6 and 1/6 of the rate.
# Happens: step 4 trains with the rate 0, at which the shorter schedule had ended: no weight changes. The optimizer's state is loaded with
#   its last rate, and the new schedule says something only after the step. Steps 5 and 6 have the expected rates.
# Version: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
# Seen: rates of steps 4 to 6: [0.0, 0.0333, 0.0167] weights changed: {4: False, 5: True}; expected 0.05 for step 4
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([1, 2, 3, 4], [1, 5, 6, 7])] * 3
weights, rates = {}, {}


class Watch(TrainerCallback):
    def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
        rates[state.global_step + 1] = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, model, **kwargs):
        weights[state.global_step] = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])


def train(steps, resume):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir="run", max_steps=steps, save_steps=3, learning_rate=0.1, lr_scheduler_type="linear", warmup_steps=0,
        per_device_train_batch_size=1, report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**sizes)), arguments, train_dataset=rows, callbacks=[Watch()])
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)


train(3, None)
train(6, True)
changed = {step: not torch.equal(weights[step - 1], weights[step]) for step in (4, 5)}
print("rates of steps 4 to 6:", [round(rates[step], 4) for step in (4, 5, 6)], "weights changed:", changed)
assert rates[4] == 0 and abs(rates[5] - 0.1 * 2 / 6) < 1e-9, "the first step has its own rate now"
assert changed == {4: False, 5: True}
PY
