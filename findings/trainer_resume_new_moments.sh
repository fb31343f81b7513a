#!/usr/bin/env bash
# Expected: resuming from a checkpoint without an optimizer's state (written with save_only_model=True, say) raises.
# Happens: training goes on from its step with a new optimizer and a schedule that begins anew, warm-up and all. No error and no
#   warning; the run ends with other weights.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen: learning rates of the last 4 steps: without a stop 0.05, 0.0375, 0.025, 0.0125; resumed 0.1, 0.0875, 0.075, 0.0625
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


ids = torch.arange(12) % 4 + 1


def trained(folder, resume=None, **options):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        folder, max_steps=8, save_steps=4, per_device_train_batch_size=2, learning_rate=0.1, logging_steps=1, use_cpu=True,
        report_to="none", disable_tqdm=True, **options,
    )
    trainer = Trainer(model=Bigram(PretrainedConfig()), args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    trainer.train(resume_from_checkpoint=resume)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    return [round(rate, 4) for rate in rates[-4:]], trainer.model.next.weight.detach(), trainer.state.global_step


rates, weights, steps = trained("whole")
_, whole_weights, _ = trained("whole", resume="whole/checkpoint-4")
trained("model-only", save_only_model=True)
new_rates, new_weights, new_steps = trained("model-only", resume="model-only/checkpoint-4", save_only_model=True)
apart = (new_weights - weights).abs().max().item()
print(f"learning rates of the last 4 steps {rates}, resumed {new_rates}; step {new_steps}; weights apart by {apart:.2f}")
assert torch.equal(whole_weights, weights) and new_steps == steps == 8
assert new_rates != rates and apart > 0.01, "such a checkpoint is told apart now"
PY
