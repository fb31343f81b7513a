#!/usr/bin/env bash
# Expected: a constant made in a model's __init__ and registered as a non-persistent buffer (a causal mask, say) is there after
#   from_pretrained, as it was in transformers 4: the file lacks it on purpose, __init__ makes it.
# Happens: from_pretrained runs __init__ on the meta device and then gives such buffers uninitialised memory. No warning, and
#   no missing key: the loaded model computes with garbage. Only _init_weights can fill it again.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: sum of a 64 x 64 lower triangle of ones: 2080.0 made, something else loaded
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - <<'PY'
import torch
from transformers import PretrainedConfig, PreTrainedModel


class Model(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(64, 64)
        self.register_buffer("mask", torch.ones(64, 64).tril(), persistent=False)
        self.post_init()


made = Model(PretrainedConfig())
made.save_pretrained("saved")
used = [torch.full((64, 64), 7.0) for _ in range(100)]
del used  # memory that was in use before, as in any real program
loaded, report = Model.from_pretrained("saved", output_loading_info=True)
print("sum of the mask, made:", made.mask.sum().item(), "loaded:", loaded.mask.sum().item(), "missing keys:", report["missing_keys"])
assert torch.equal(made.linear.weight, loaded.linear.weight) and not report["missing_keys"]
assert not torch.equal(made.mask, loaded.mask), "the buffer is what __init__ made now"
PY
