#!/usr/bin/env bash
# Expected: a label_smoothing_factor smooths the loss that a causal model has without it; as small a factor as 1e-6 changes next
#   to nothing.
# Happens: the Trainer takes the labels from the model and computes the loss itself, shifted only for class names in transformers'
#   own list of causal models. A model of one's own learns to COPY its input, with a loss that falls nicely. No warning.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen: after 1, 2, 3, 4 the model says 2, 3, 4, 1 without a factor and 1, 2, 3, 4 with 1e-6
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
        logits, loss = self.next(input_ids), None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


ids = torch.arange(12) % 4 + 1
answers = {}
for factor in (0.0, 1e-6):
    torch.manual_seed(0)
    model = Bigram(PretrainedConfig())
    arguments = TrainingArguments(
        "out", max_steps=60, learning_rate=0.1, label_smoothing_factor=factor, save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True, logging_steps=1000,
    )
    Trainer(model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8).train()
    answers[factor] = model(torch.tensor([[1, 2, 3, 4]])).logits.argmax(-1)[0].tolist()
print("after 1, 2, 3, 4 comes, by factor:", answers)
assert answers == {0.0: [2, 3, 4, 1], 1e-6: [1, 2, 3, 4]}, "smoothing shifts the labels of any causal model now"
PY
