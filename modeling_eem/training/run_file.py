"""Run files: one flat YAML that names a model, its data and its training, checked key by key.

    base: quickstart.yaml            # another run file; this one overrides its values
    model_type: eem                  # any type that AutoConfig knows; its config's fields stand beside it
    num_labels: 1                    # one number a token instead of a language model: regression on entropies
    encoder_config: {hidden_size: 128}
    learning_rate: 2e-4              # the fields of the given dataclasses (transformers' TrainingArguments, …)

Instead of `model_type`, `model_name_or_path` names a checkpoint to start from. Its sizes are fixed; only keys that
leave its weights as they are may stand beside it, `FINE_TUNING_KEYS`.

A key on the command line, `--learning_rate 1e-3` or `--encoder_config.hidden_size 256`, overrides the file's.

Paths in a run file are relative to that file, those on the command line to the working directory. In both,
`asset:NAME` names what ships with this package: `tokenizer: asset:tokenizer`. A `tokenizer` or `model_name_or_path` is
a folder if it begins with `./`, `../` or `/`, or if a folder of that name is beside the file; otherwise it is a name
on the Hub.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from modeling_eem.files import asset, without_secrets
from modeling_eem.loading import ModelKind, check_causal, load_model, model_class
from modeling_eem.models.configuration_eem import is_autoencoder

# Keys whose values are files or folders, and keys whose values may also be other names.
_PATHS = ("train_files", "validation_files", "train_rows", "output_dir")
_PATHS_OR_NAMES = ("tokenizer", "model_name_or_path", "resume_from_checkpoint")
_PATHS_OR_NAMES += ("deepspeed", "fsdp_config", "accelerator_config")
FINE_TUNING_KEYS = ("code_dtype", "noise_placement", "noise_scale", "num_labels", "random_prefix_probability")


class _Loader(yaml.SafeLoader):
    """Reads numbers and booleans of YAML 1.2. PyYAML reads YAML 1.1, where `1e4` is text and `no` is false.

    A key that stands twice is an error: one of its values would be lost.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for index, key in enumerate(keys) if key in keys[:index]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# YAML 1.1 reads 010 as 8 and 1:30 as 90: here they stay text, which the fields' types read as 10 and refuse.
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_run_file(
    path: str | Path, dataclass_types: Sequence[type], overrides: Sequence[str] = ()
) -> tuple[PreTrainedConfig, tuple[Any, ...]]:
    """The model's config, and one instance of each dataclass, from a run file and `--key value` overrides.

    Raises:
        ValueError: for a file that is missing or not a mapping, a key that nothing reads (with the nearest known key),
            a value of the wrong type, or an override without a value. It begins with the file, or with "command line"
            if the file by itself is right.
    """
    try:
        return _read_or_refuse(Path(path), dataclass_types, overrides)
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
        if message.startswith(str(path)):
            raise ValueError(without_secrets(message)) from error
        where = "command line" if overrides and _is_readable(Path(path), dataclass_types) else path
        raise ValueError(f"{where}: {without_secrets(message)}") from error


def _is_readable(path: Path, dataclass_types: Sequence[type]) -> bool:
    """Whether a run file is right by itself: an override is then wrong."""
    try:
        _read_or_refuse(path, dataclass_types, ())
    except ValueError:
        return False
    return True


def _read_or_refuse(
    path: Path, dataclass_types: Sequence[type], overrides: Sequence[str]
) -> tuple[PreTrainedConfig, tuple[Any, ...]]:
    """`_read_run_file`, with any error of the classes turned into a ValueError of one line."""
    try:
        return _read_run_file(path, dataclass_types, overrides)
    except (argparse.ArgumentError, StrictDataclassError, TypeError, OverflowError, yaml.YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_run_file(
    path: Path, dataclass_types: Sequence[type], overrides: Sequence[str]
) -> tuple[PreTrainedConfig, tuple[Any, ...]]:
    values = _read(path)
    for key, value in _pairs(overrides):
        _set(values, key.split("."), value)
    checkpoint = values.pop("model_name_or_path", None)
    saved = {} if checkpoint is None else _saved_config(path, checkpoint)
    if checkpoint is not None and "model_type" in values:
        raise ValueError(f"{path}: model_type makes a new model and model_name_or_path goes on from one; name one.")
    model_type = values.pop("model_type", saved.get("model_type"))
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"{path}: model_type must be a type that AutoConfig knows, such as 'eem'; got {model_type!r}."
        )
    config_keys = _config_keys(model_type)
    argument_keys = {field.name for kind in dataclass_types for field in dataclasses.fields(kind) if field.init}
    _refuse_unknown(values, config_keys | argument_keys | {"base"}, str(path))
    given = {key: values.pop(key) for key in list(values) if key in config_keys}
    if checkpoint is None:
        return build_config(model_type, given), _parse(dataclass_types, values)
    for key in given:
        if key not in FINE_TUNING_KEYS:
            raise ValueError(f"{path}: {key} is fixed by the model in {checkpoint}; leave it out.")
    return _checkpoint_config(checkpoint, saved, given), _parse(dataclass_types, values)


def _saved_config(path: Path, checkpoint: Any) -> dict[str, Any]:
    try:
        return PreTrainedConfig.get_config_dict(checkpoint)[0]
    except OSError as error:
        raise ValueError(f"{path}: model_name_or_path: no model in {checkpoint!r}.") from error


def _checkpoint_config(checkpoint: str, saved: dict[str, Any], given: dict[str, Any]) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[saved["model_type"]]
    hints = _field_types(config_class)
    if "num_labels" in given:  # the names of its old labels would contradict it
        saved = {key: value for key, value in saved.items() if key not in ("id2label", "label2id")}
    config = config_class.from_dict(saved | {key: _cast(key, value, hints.get(key)) for key, value in given.items()})
    config.name_or_path = checkpoint
    return config


def build_config(model_type: str, values: dict[str, Any]) -> PreTrainedConfig:
    """A config from YAML's values: each is cast to its field's type; unknown keys are errors.

    Raises:
        ValueError: for a key that the config does not have, a value of the wrong type, or contradicting fields.
    """
    _refuse_unknown(values, _config_keys(model_type), model_type)
    config_class = CONFIG_MAPPING[model_type]
    hints = _field_types(config_class)
    cast = {}
    for key, value in values.items():
        if isinstance(value, dict) and key.endswith("_config"):
            inner = dict(value)
            inner_type = inner.pop("model_type", "masked_mixer")
            if inner_type in CONFIG_MAPPING:
                inner_hints = _field_types(CONFIG_MAPPING[inner_type])
                inner = {name: _cast(f"{key}.{name}", item, inner_hints.get(name)) for name, item in inner.items()}
            cast[key] = {"model_type": inner_type, **inner}
        else:
            cast[key] = _cast(key, value, hints.get(key))
    return config_class(**cast)


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model to train for a config, of its `model_kind` and in float32: new, or from the checkpoint that the config
    names.

    Raises:
        ValueError: for a model type without such a model, a causal model or classifier that sees later tokens, or a
            checkpoint without all its weights, see `loading.load_model`.
    """
    kind = model_kind(config)
    if kind == "token_classifier" and type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise ValueError(f"num_labels: 1 needs a token classifier, and {config.model_type!r} has none.")
    if config.name_or_path:
        return load_model(config.name_or_path, kind, config=config, new_head=kind == "token_classifier")
    model = model_class(config, kind, config.model_type).from_config(config, dtype="float32")
    if kind != "autoencoder":
        check_causal(model)
    return model


def model_kind(config: PreTrainedConfig) -> ModelKind:
    """The autoencoder of an autoencoder's config, a token classifier if `num_labels` is 1, else the causal LM."""
    if is_autoencoder(config):
        return "autoencoder"
    return "token_classifier" if config.num_labels == 1 else "causal"


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply for a run file.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines.")
    for key in values.keys() & {*_PATHS, *_PATHS_OR_NAMES}:
        values[key] = _placed(values[key], path.parent, is_path=key in _PATHS)
    if "base" in values:
        if not isinstance(name := values.pop("base"), str):
            raise ValueError(f"{path}: base must be the name of a run file, got {name!r}.")
        base = path.parent / asset(name)
        if base.resolve() in (path.resolve(), *above):
            raise ValueError(f"{path}: base {base.name} leads back to this file.")
        values = _merge(_read(base, (*above, path.resolve())), values)
    return values


def _placed(value: Any, folder: Path, is_path: bool) -> Any:
    """A path of a run file in `folder`, seen from the working directory; values that are no paths stay as they are."""
    if isinstance(value, list):
        return [_placed(item, folder, is_path) for item in value]
    if not isinstance(value, str) or value.startswith("asset:") or "://" in value:
        return value
    value = os.path.expanduser(value)
    placed = os.path.abspath(folder / value)
    if not is_path and not value.startswith(("./", "../", "/")) and not os.path.exists(placed):
        return value
    relative = os.path.relpath(placed)
    # The same text however the run file was named, because a resume compares it; and short to print.
    return placed if relative.startswith("..") or os.path.isabs(value) else relative


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """`--key value`, `--key=value` and `--key value value …`, each value as YAML reads it."""
    given: list[tuple[str, list[str]]] = []
    for argument in overrides:
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            given.append((key, [value] if equals else []))
        elif given:
            given[-1][1].append(argument)
        else:
            raise ValueError(f"overrides must come as `--key value` pairs, got: {' '.join(overrides)}")
    pairs = []
    for key, values in given:
        if not values:
            raise ValueError(f"overrides must come as `--key value` pairs, got --{key} without a value.")
        try:
            read = [yaml.load(value, _Loader) for value in values]
        except yaml.YAMLError:
            raise ValueError(f"--{key} {' '.join(values)}: the value is not YAML.") from None
        pairs.append((key, read[0] if len(read) == 1 else read))
    return pairs


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"--{'.'.join(keys)}: {key} is one value, {values!r}, and has no keys: set it whole.")
    before = values.get(keys[-1])
    values[keys[-1]] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value


def _config_keys(model_type: str) -> set[str]:
    config_class = CONFIG_MAPPING[model_type]
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    return (own - general) | {"is_causal", "num_labels"}


def _field_types(kind: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
            raise ValueError(f"{where}: unknown key {key!r}{hint}")


def _cast(key: str, value: Any, hint: Any) -> Any:
    """Cast to the field's type: YAML reads `2e-4` as text and `0` as an integer."""
    if hint is None:
        return value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{key} must be a number, got {value!r}.") from None
        if not math.isfinite(number):
            raise ValueError(f"{key} must be a finite number, got {value!r}.")
        return number
    if bool in kinds and isinstance(value, str):
        return _as_boolean(key, value)
    if int in kinds and str not in kinds and isinstance(value, str):
        raise ValueError(f"{key} must be an integer, got {value!r}.")
    return value


def _as_boolean(key: str, value: str) -> bool:
    """The boolean that YAML 1.1 and argument parsers read."""
    words = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
    if value.lower() not in words:
        raise ValueError(f"{key} must be true or false, got {value!r}.")
    return words[value.lower()]


def _parse(dataclass_types: Sequence[type], values: dict[str, Any]) -> tuple[Any, ...]:
    """Instances made by the dataclasses' argument parser, which casts to the fields' types; null becomes None."""
    values = dict(values)
    trackers = values.pop("report_to", None)  # the parser takes one value for it
    if trackers is False:
        trackers = "none"
    if isinstance(trackers, str):
        values["report_to"] = trackers
    elif not (trackers is None or isinstance(trackers, list)):
        raise ValueError(f"report_to must be names of trackers, or none; got {trackers!r}.")
    arguments = []
    for key, value in values.items():
        if isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    # transformers types dataclasses with a NewType, which no class fits.
    kinds: Any = dataclass_types
    parser = HfArgumentParser(kinds, exit_on_error=False, allow_abbrev=False)
    parser.error = _raise
    parsed = vars(parser.parse_args(arguments))
    instances = []
    for kind in dataclass_types:
        fields = [field for field in dataclasses.fields(kind) if field.init]
        hints = typing.get_type_hints(kind)  # the parser removes None from the fields' own
        for name in hints.keys() & values.keys():
            if isinstance(values[name], list) and not _is_list(hints[name]):  # the parser takes `[1]` for 1
                raise ValueError(f"{name} takes one value, not the list {values[name]}.")
        nulls = {field.name: _null(field.name, hints) for field in fields if values.get(field.name, 0) is None}
        if "report_to" in parsed and "report_to" in hints and isinstance(trackers, list):
            nulls["report_to"] = [str(name) for name in trackers] or "none"
        instances.append(kind(**{field.name: parsed[field.name] for field in fields} | nulls))
    return tuple(instances)


def _is_list(hint: Any) -> bool:
    """Whether a field's type is a list, or may be one."""
    return hint is list or typing.get_origin(hint) is list or any(map(_is_list, typing.get_args(hint)))


def _null(name: str, hints: dict[str, Any]) -> Any:
    """The value of null for a field: None if it is optional, [] for a list; ValueError for any other field."""
    if type(None) in typing.get_args(hints[name]):
        return None
    if typing.get_origin(hints[name]) is list:
        return []
    raise ValueError(f"{name} cannot be null: give it a value, or leave it out.")


def _raise(message: str) -> typing.NoReturn:
    raise ValueError(message)


__all__ = ["FINE_TUNING_KEYS", "build_config", "build_model", "read_run_file"]
