#!/usr/bin/env bash
# Expected: an optional parameter of forward that the data does not have, such as label_weights=None, changes nothing.
# Happens: every parameter with "label" in its name is taken for a label column. One that the rows lack means "no labels here":
#   evaluate() returns no eval_loss and predict() no label_ids, without a warning; load_best_model_at_end finds no metric.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen: eval_loss in the result: without the parameter True, with it False
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - <<'PY'
import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput


class Plain(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.next = torch.nn.Embedding(8, 8)
        self.post_init()

    def forward(self, input_ids, labels=None):
        logits = self.next(input_ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class Weighted(Plain):
    def forward(self, input_ids, labels=None, label_weights=None):
        return super().forward(input_ids, labels)


ids = torch.arange(12) % 4 + 1
rows = [{"input_ids": ids, "labels": ids}] * 8
arguments = TrainingArguments("out", use_cpu=True, report_to="none", disable_tqdm=True)
has_loss = {}
for kind in (Plain, Weighted):
    trainer = Trainer(model=kind(PretrainedConfig()), args=arguments, eval_dataset=rows)
    has_loss[kind.__name__] = ("eval_loss" in trainer.evaluate(), trainer.predict(rows).label_ids is not None)
print("eval_loss, label_ids are there:", has_loss)
assert has_loss == {"Plain": (True, True), "Weighted": (False, False)}, "such a parameter changes nothing now"
PY
