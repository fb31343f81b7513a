#!/usr/bin/env bash
# Expected: eight rows as one batch or as four accumulated ones give the same gradient, for any model that returns a mean loss.
# Happens: a forward that has **kwargs is taken for one that divides its loss by num_items_in_batch. If it returns a mean, loss and
#   gradient are too large by the number of accumulation steps (and of processes). Without **kwargs the same model is right.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen (gradient norm, 1 and 4 steps): without **kwargs 0.46, 0.46; with 0.46, 1.85
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput


class Bigram(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.next = torch.nn.Embedding(8, 8)
        self.post_init()

    def forward(self, input_ids, labels=None):
        logits = self.next(input_ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class WithKwargs(Bigram):
    def forward(self, input_ids, labels=None, **kwargs):
        return super().forward(input_ids, labels)


ids = torch.arange(12) % 4 + 1


def gradient_norm(kind: type, steps: int) -> float:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        "out", max_steps=1, gradient_accumulation_steps=steps, per_device_train_batch_size=8 // steps, logging_steps=1,
        save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )
    rows = [{"input_ids": ids, "labels": ids}] * 8
    trainer = Trainer(model=kind(PretrainedConfig()), args=arguments, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


norms = {kind.__name__: [gradient_norm(kind, steps) for steps in (1, 4)] for kind in (Bigram, WithKwargs)}
print("gradient norms with 1 and 4 accumulated batches:", norms)
assert abs(norms["Bigram"][1] / norms["Bigram"][0] - 1) < 0.01
assert abs(norms["WithKwargs"][1] / norms["WithKwargs"][0] - 4) < 0.01, "kwargs no longer change the gradient"
PY
