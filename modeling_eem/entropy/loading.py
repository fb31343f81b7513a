"""Estimators from the folders of their models."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_eem  # noqa: F401 (registers this project's models)
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.exact import TwoModelEntropy
from modeling_eem.entropy.registry import estimator_class
from modeling_eem.entropy.regression import RegressionEntropy
from modeling_eem.entropy.teacher import TeacherEntropy


def check_options(method: str, options: dict[str, Any]) -> None:
    """Raise a ValueError for an unknown method, or an option that it does not have."""
    parameters = inspect.signature(estimator_class(method)).parameters
    if foreign := [name for name in options if name not in parameters]:
        raise ValueError(f"{', '.join(foreign)}: not an option of the method {method}; leave it out.")


def load_models(
    method: str, names: list[str], dtype: str = "float32", device: torch.device | str = "cpu"
) -> list[PreTrainedModel]:
    """The models of a method, from folders or the Hub, in evaluation mode.

    Args:
        names: one; of `two_models` the model of the longer and that of the shorter prefix; of `teacher` the teacher's.

    Raises:
        ValueError: for the wrong number of models, or a checkpoint without the weights that the method needs; OSError
            for a folder without a model.
    """
    kind = estimator_class(method)
    needed = 2 if kind is TwoModelEntropy else 1
    if len(names) != needed:
        raise ValueError(f"the method {method} takes {needed} model{'s'[: needed - 1]}, not {len(names)}.")
    return [_load(name, kind is RegressionEntropy, dtype).to(device) for name in names]


def build_estimator(
    method: str, models: list[PreTrainedModel], tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> EntropyEstimator:
    """`ESTIMATORS[method]` of models from `load_models`.

    Args:
        tokenizer: the student's, for `teacher`; the teacher's own is beside its weights.
        options: the estimator's own.

    Raises:
        ValueError: for an option that the method does not have, or a teacher without a student's tokenizer.
    """
    check_options(method, options)
    kind = estimator_class(method)
    if kind is not TeacherEntropy:
        return kind(*models, **options)
    if tokenizer is None:
        raise ValueError("the method teacher needs the tokenizer that the rows were made with: pass --tokenizer.")
    return TeacherEntropy(models[0], AutoTokenizer.from_pretrained(models[0].name_or_path), tokenizer, **options)


def weights_sha256(model: PreTrainedModel) -> str:
    """A SHA-256 of a model's config and weights, whatever folder they are in."""
    config = model.config.to_diff_dict()
    for origin in ("_name_or_path", "transformers_version"):
        config.pop(origin, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def own_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a model's folder; None for a folder without one."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        return None
    return AutoTokenizer.from_pretrained(name)


def _load(name: str, is_regression: bool, dtype: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name)
    auto_class, mapping, kind = (
        (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, "token classifier")
        if is_regression
        else (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "causal language model")
    )
    if type(config) not in mapping:
        raise ValueError(f"{name} holds a model of the type {config.model_type!r}, which is no {kind}.")
    model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):  # they would be filled with random numbers
        raise ValueError(f"{name} lacks the weights {', '.join(missing[:3])}: it was not trained as a {kind}.")
    return model.eval()
