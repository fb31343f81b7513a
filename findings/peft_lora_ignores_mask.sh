#!/usr/bin/env bash
# Expected: LoRA on a layer that uses only part of its weight (a causal, i.e. lower triangular, product over positions)
#   stays within that part; or PEFT refuses the layer.
# Happens: target_modules="all-linear" takes every subclass of nn.Linear and adds B A x beside its forward, past the mask:
#   during training the future leaks into the past. merge_and_unload puts B A under the mask: another model than was trained.
# Version: peft 0.21.2, transformers 5.23.0, torch 2.13.0.
# Seen: change of earlier outputs when the last input changes: 0 plain, 0.19 with LoRA, 0 merged
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
python - 2>/dev/null <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel


class CausalLinear(torch.nn.Linear):
    """y[i] = sum over j <= i of W[i, j] x[j]"""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.tril(), self.bias)


class Model(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.mix = CausalLinear(6, 6)
        self.post_init()

    def forward(self, x):
        return self.mix(x)


def leak(model):
    one, other = torch.ones(1, 6), torch.ones(1, 6)
    other[0, -1] = 2
    return (model(x=one) - model(x=other))[0, :-1].abs().max().item()


torch.manual_seed(0)
model = Model(PretrainedConfig())
plain = leak(model)
adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
trained = leak(adapted)
inputs = torch.ones(1, 6)
outputs = adapted(x=inputs)
merged = adapted.merge_and_unload()
apart = (merged(x=inputs) - outputs).abs().max().item()
print(f"leak: plain {plain}, with LoRA {trained:.2f}, merged {leak(merged)}; merged and unmerged outputs differ by {apart:.2f}")
assert plain == 0 and leak(merged) == 0
assert trained > 0.01 and apart > 0.01, "the mask is kept now"
PY
