#!/usr/bin/env bash
# Expected: a model for token classification with num_labels=1 is a regression, as one for sequence classification is, or an error.
# Happens: its loss is the cross-entropy of one class: 0 for every text, with no gradient. Training runs and learns nothing. Numbers
#   as labels raise (expected Long), so one is led to integers.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen (loss, size of the gradient): sequence classification 1e-5, 0.006; token classification 0.0, 0.0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
config, ids = BertConfig(vocab_size=32, num_labels=1, **sizes), torch.arange(6)[None]


def loss_and_gradient(kind, labels):
    model = kind(config).eval()
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    return loss.item(), model.classifier.weight.grad.abs().sum().item()


seen = {
    "sequences": loss_and_gradient(BertForSequenceClassification, torch.zeros(1)),
    "tokens": loss_and_gradient(BertForTokenClassification, torch.zeros(1, 6, dtype=torch.long)),
}
print("loss and size of the gradient:", seen)
try:
    loss_and_gradient(BertForTokenClassification, torch.zeros(1, 6))
    numbers = "taken"
except RuntimeError as error:
    numbers = str(error)
print("numbers as labels of tokens:", numbers)
assert seen["sequences"][1] > 0 and "Long" in numbers
assert seen["tokens"] == (0.0, 0.0), "one label is a regression now"
PY
