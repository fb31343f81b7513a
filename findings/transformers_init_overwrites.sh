#!/usr/bin/env bash
# Expected: from_pretrained initializes the weights that the checkpoint lacks, and those alone.
# Happens: it calls _init_weights for each module that lacks one, and a plain weight.data.normal_() in it, as PyTorch and transformers
#   4 had it, writes over the loaded weights of that module too. The report names only the missing one: a model that was given a bias
#   loads with a random weight beside it. The functions of transformers.initialization leave loaded weights alone.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen (bias missing; the loaded weight is the saved one): weight.data.normal_() False, init.normal_(weight) True
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel, initialization


class Plain(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(8, 8)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_()
            module.bias.data.zero_()


class Guarded(Plain):
    def _init_weights(self, module):
        if isinstance(module, torch.nn.Linear):
            initialization.normal_(module.weight)
            initialization.zeros_(module.bias)


seen = {}
for kind in (Plain, Guarded):
    kind(PretrainedConfig()).save_pretrained("saved")
    saved = load_file("saved/model.safetensors")
    save_file({"linear.weight": saved["linear.weight"]}, "saved/model.safetensors", metadata={"format": "pt"})
    loaded, report = kind.from_pretrained("saved", output_loading_info=True)
    assert report["missing_keys"] == {"linear.bias"}
    seen[kind.__name__] = torch.equal(loaded.linear.weight, saved["linear.weight"])
print("the loaded weight is the saved one:", seen)
assert seen == {"Plain": False, "Guarded": True}, "loaded weights stay now"
PY
