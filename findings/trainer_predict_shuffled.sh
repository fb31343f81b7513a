#!/usr/bin/env bash
# Expected: Trainer.predict(dataset) gives one prediction a row, in the order of the rows. train_sampling_strategy, "the sampler to use
#   for the training dataloader", has nothing to do with it.
# Happens: with "group_by_length" predict and evaluate draw rows by that sampler too: predictions come in another order, and
#   nothing that is returned says which row each belongs to. label_ids are in the same order, so metrics are right; predictions written
#   beside the dataset's texts are other texts' predictions. No warning.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0.
# Seen (each row's prediction is its number): random [0, 1, 2, 3, 4, 5, 6, 7]; group_by_length
#   [2, 3, 7, 0, 6, 1, 5, 4]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import torch
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments


class FirstToken(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.post_init()

    def forward(self, input_ids, labels=None):
        logits = self.scale * input_ids[:, :1]
        return {"loss": (logits[:, 0] - labels).square().mean(), "logits": logits}


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor([row["labels"] for row in rows])}


rows = [{"input_ids": [number] * (number % 3 + 1), "labels": number} for number in range(8)]
seen = {}
for strategy in ("random", "group_by_length"):
    arguments = TrainingArguments(
        strategy, train_sampling_strategy=strategy, per_device_eval_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = Trainer(model=FirstToken(PretrainedConfig()), args=arguments, data_collator=collate)
    output = trainer.predict(rows)
    seen[strategy] = output.predictions[:, 0].astype(int).tolist()
    assert seen[strategy] == output.label_ids.tolist() and sorted(seen[strategy]) == list(range(8))
    print(strategy, seen[strategy])
assert seen["random"] == list(range(8))
assert seen["group_by_length"] != list(range(8)), "predictions come in the order of the rows now"
PY
