#!/usr/bin/env bash
# Expected: when auto_find_batch_size meets a lack of memory in step 4, training starts again with smaller batches from the
#   first weights (or goes on at step 4).
# Happens: the step counter, the data and the optimizer start again, but the weights keep the 3 steps that were taken:
#   max_steps=4 trains for 7. (The lack of memory is simulated by raising the error that PyTorch raises.)
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen: final weight -0.7 where 4 steps of 0.1 give -0.4; global_step 4
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import torch
from transformers import Trainer, TrainingArguments


class Slope(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return {"loss": (self.weight * x).mean()}


model = Slope()
arguments = TrainingArguments(
    "out", per_device_train_batch_size=4, auto_find_batch_size=True, max_steps=4, optim="sgd", learning_rate=0.1,
    lr_scheduler_type="constant", max_grad_norm=0, use_cpu=True, report_to="none", disable_tqdm=True,
)
trainer = Trainer(model=model, args=arguments, train_dataset=[{"x": torch.ones(1)}] * 64)
trainer.train()
print("weight", round(model.weight.item(), 3), "global_step", trainer.state.global_step)
assert trainer.state.global_step == 4 and round(model.weight.item(), 3) == -0.7, "the weights start again now"
PY
