#!/usr/bin/env bash
# Expected: code that is loaded from a model's folder with trust_remote_code=True does what the same code does as a package.
# Happens: transformers copies the code once for each file that it enters by, named by a hash of that file and what it imports. So
#   the configuration that AutoConfig made is of another class than the one that the modeling file imports: isinstance is False,
#   and AutoModel.from_config of a part that the modeling file registered raises "Unrecognized configuration class".
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: as a package (True, 'Part'); from the folder (False, 'Unrecognized configuration class')
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
export HF_MODULES_CACHE=$WORK/modules
mkdir package
touch package/__init__.py
cat > package/configuration_whole.py <<'PY'
from transformers import PretrainedConfig


class PartConfig(PretrainedConfig):
    model_type = "part"


class WholeConfig(PretrainedConfig):
    model_type = "whole"

    def part(self):
        return PartConfig()
PY
cat > package/modeling_whole.py <<'PY'
import torch
from transformers import AutoModel, PreTrainedModel

from .configuration_whole import PartConfig, WholeConfig


class Part(PreTrainedModel):
    config_class = PartConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2)
        self.post_init()


AutoModel.register(PartConfig, Part)


class Whole(PreTrainedModel):
    config_class = WholeConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(2, 2)
        try:
            part = type(AutoModel.from_config(config.part())).__name__
        except ValueError as error:
            part = str(error).split(" <")[0]
        self.seen = isinstance(config, WholeConfig), part
        self.post_init()
PY
python - 2>/dev/null <<'PY'
from package.configuration_whole import WholeConfig
from package.modeling_whole import Whole
from transformers import AutoModel

WholeConfig.register_for_auto_class()
Whole.register_for_auto_class("AutoModel")
model = Whole(WholeConfig())
model.save_pretrained("saved")
loaded = AutoModel.from_pretrained("saved", trust_remote_code=True)
print("configuration is of its class, part: as a package", model.seen, "from the folder", loaded.seen)
assert model.seen == (True, "Part")
assert loaded.seen == (False, "Unrecognized configuration class"), "the classes are one now"
PY
