#!/usr/bin/env bash
# Expected: PyTorchModelHubMixin saves the arguments that a model was made with, and raises for one it cannot write.
# Happens: arguments that JSON cannot hold (a dtype, a function) are left out silently; from_pretrained then builds the
#   model with the DEFAULT for them: other numbers, no warning. Missing weights are accepted too (strict=False).
# Version: huggingface_hub 2.4.0, torch 2.13.0.
# Seen: made with gelu, saved and loaded: relu; weights missing in the file: no error
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 huggingface-hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
python - 2>/dev/null <<'PY'
import json

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin


class Small(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 4, activation=F.relu):
        super().__init__()
        self.layer, self.activation = torch.nn.Linear(width, width), activation

    def forward(self, x):
        return self.activation(self.layer(x))


class Larger(Small):
    def __init__(self, width: int = 4, activation=F.relu):
        super().__init__(width, activation)
        self.second = torch.nn.Linear(width, width)


model = Small(width=8, activation=F.gelu)
model.save_pretrained("saved")
loaded = Small.from_pretrained("saved")
written = json.load(open("saved/config.json"))
larger = Larger.from_pretrained("saved")
x = torch.ones(1, 8)
same = torch.equal(model(x), loaded(x))
print("written", written, "activation", model.activation.__name__, "->", loaded.activation.__name__, "same outputs:", same)
print("a model with one more layer loaded from the same file without an error:", hasattr(larger, "second"))
assert written == {"width": 8} and loaded.activation is F.relu and not same
PY
