"""The keys that `eem train --help` lists without an import are those that run files take."""

import dataclasses

from typer.testing import CliRunner

from eem.__main__ import app
from eem.train_keys import DATA_KEYS, EEM_KEYS, LOSS_KEYS, MIXER_KEYS, PANELS, STOPPING_KEYS
from modeling_eem import EEMAutoencoderConfig, EEMConfig, MaskedMixerConfig
from modeling_eem.training import (
    TOKEN_LOSSES,
    DataArguments,
    RunArguments,
    TokenWeightedTrainingArguments,
)


def _names(kind: type, *below: type) -> set[str]:
    inherited = {field.name for base in below for field in dataclasses.fields(base)}
    return {field.name for field in dataclasses.fields(kind) if field.init} - inherited


def test_the_keys_listed_are_the_fields_there_are() -> None:
    from transformers import PreTrainedConfig, TrainingArguments

    assert set(DATA_KEYS) == _names(DataArguments)
    assert set(LOSS_KEYS) == _names(TokenWeightedTrainingArguments, TrainingArguments)
    assert _names(RunArguments, TokenWeightedTrainingArguments) <= set(STOPPING_KEYS) <= _names(RunArguments)
    own = _names(MaskedMixerConfig, PreTrainedConfig)
    assert own <= set(MIXER_KEYS) and set(MIXER_KEYS) <= _names(MaskedMixerConfig)
    assert set(EEM_KEYS) == _names(EEMConfig, PreTrainedConfig) | _names(EEMAutoencoderConfig, PreTrainedConfig)


def test_every_token_loss_is_named() -> None:
    assert all(name in LOSS_KEYS["token_loss"] for name in TOKEN_LOSSES)


def test_help_all_lists_transformers_arguments_too() -> None:
    result = CliRunner().invoke(app, ["train", "--help-all"])
    assert result.exit_code == 0
    for key in ("--learning_rate", "--save_total_limit", *(f"--{key}" for keys in PANELS.values() for key in keys)):
        assert f"{key} " in result.stdout
