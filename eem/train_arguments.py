"""The keys that run files share with transformers' TrainingArguments, as `eem train --help-all` shows them."""

import dataclasses

from eem.train_keys import LOSS_KEYS, STOPPING_KEYS
from modeling_eem.training import RunArguments


def argument_panels() -> dict[str, dict[str, str]]:
    """Every field of the training arguments that is transformers' own, with its default."""
    ours = LOSS_KEYS | STOPPING_KEYS
    fields = [field for field in dataclasses.fields(RunArguments) if field.init and field.name not in ours]
    return {"transformers' TrainingArguments": {field.name: _said(field) for field in fields}}


def _said(field: dataclasses.Field) -> str:
    said = str(field.metadata.get("help", ""))
    has_default = field.default not in (None, "", dataclasses.MISSING)
    return f"{said} [{field.default}]" if has_default else said
