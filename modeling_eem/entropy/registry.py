"""Estimators by name, and from the folders of their models.

Each estimator declares the kind and number of its models, and its options. The command line reads them from
`assets/entropy_options.json`, which `write_option_table` writes, because its help must not wait for torch.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.data.fingerprint import tokenizer_sha256
from modeling_eem.data.rows import stage_columns
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.entropy.causal import CausalEntropy
from modeling_eem.entropy.exact import ExactEntropy, TwoModelEntropy
from modeling_eem.entropy.gradient_input import GradientInputEntropy
from modeling_eem.entropy.occlusion import OcclusionEntropy
from modeling_eem.entropy.regression import RegressionEntropy
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.sliding import SlidingEntropy
from modeling_eem.entropy.teacher import TeacherEntropy
from modeling_eem.files import write_atomically
from modeling_eem.loading import load_model, load_tokenizer, own_tokenizer

OPTIONS_FILE = Path(__file__).parents[1] / "assets" / "entropy_options.json"

ESTIMATORS: dict[str, type[EntropyEstimator]] = {
    estimator.method: estimator
    for estimator in (
        ExactEntropy,
        TwoModelEntropy,
        SlidingEntropy,
        OcclusionEntropy,
        GradientInputEntropy,
        CausalEntropy,
        TeacherEntropy,
        RegressionEntropy,
    )
}


def estimator_class(name: str) -> type[EntropyEstimator]:
    """The estimator of a name in `ESTIMATORS`.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in ESTIMATORS:
        nearest = difflib.get_close_matches(name, ESTIMATORS, n=2)
        hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else "."
        raise ValueError(f"there is no estimator {name!r}, only {', '.join(ESTIMATORS)}{hint}")
    return ESTIMATORS[name]


def estimate(
    name: str,
    *models: Any,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> TokenEntropies:
    """`ESTIMATORS[name](*models, **options)`, called with texts and a tokenizer, or with ids.

    Args:
        models: what the estimator is made of: its model; or two models; or a teacher, its tokenizer and the student's.
        options: the estimator's own: `stride`, `metric`, `batch_tokens`, …
    """
    estimator = estimator_class(name)(*models, **options)
    return estimator(texts, tokenizer, input_ids=input_ids, attention_mask=attention_mask)


def load_models(
    method: str, names: Sequence[str], dtype: str = "float32", device: torch.device | str = "cpu"
) -> list[PreTrainedModel]:
    """The models of a method, from folders or the Hub, in evaluation mode; see `loading.load_model`.

    Args:
        names: one name; for `two_models` the model of the longer prefix, then that of the shorter. Several times as
            many are checkpoints of several stages of training.

    Raises:
        ValueError: for the wrong number of models.
    """
    kind = estimator_class(method)
    if not names or len(names) % kind.num_models:
        plural = "s"[: kind.num_models - 1]
        raise ValueError(f"the method {method} takes {kind.num_models} model{plural}, not {len(names)}.")
    models = [load_model(name, kind.model_kind, dtype) for name in names]
    for model in models:
        model.to(device)  # pyright: ignore[reportArgumentType] - its decorator hides that it is a method
    return models


def build_estimator(
    method: str,
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_tokens: int = 4096,
    **options: Any,
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
    if kind.reads_own_tokens:
        return kind(*models, batch_tokens=batch_tokens, **options)
    if tokenizer is None:
        raise ValueError("the method teacher needs the tokenizer that the rows were made with: pass --tokenizer.")
    folder = models[0].name_or_path
    assert folder is not None  # `load_models` loads from folders and the Hub
    own = load_tokenizer(folder)
    return TeacherEntropy(models[0], own, tokenizer, batch_tokens=batch_tokens, **options)


def build_stages(
    method: str,
    models: Sequence[PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_tokens: int = 4096,
    **options: Any,
) -> dict[str, EntropyEstimator]:
    """An estimator of each stage's models, by the column of its entropies: see `data.rows.stage_columns`."""
    size = estimator_class(method).num_models
    stages = [models[start : start + size] for start in range(0, len(models), size)]
    return {
        column: build_estimator(method, stage, tokenizer, batch_tokens, **options)
        for column, stage in zip(stage_columns(len(stages)), stages)
    }


def check_tokenizers(
    estimators: Iterable[EntropyEstimator], tokenizer: PreTrainedTokenizerBase | None, names: Sequence[str]
) -> None:
    """Refuse a tokenizer that is not the models', and models that were trained with different ones.

    Args:
        tokenizer: that of the rows, if it is known.
        names: of the estimators' models; those without a tokenizer beside them pass.

    Raises:
        ValueError: for either.
    """
    estimators = list(estimators)
    if tokenizer is not None:
        for estimator in estimators:
            estimator.check_tokenizer(tokenizer)
    if not estimators[0].reads_own_tokens:
        return
    found: dict[str, PreTrainedTokenizerBase] = {}
    for name in names:
        with suppress(OSError):  # a repository of the Hub without a tokenizer
            if (own := own_tokenizer(name)) is not None:
                found[name] = own
    owners = {tokenizer_sha256(own): name for name, own in reversed(found.items())}
    if len(owners) > 1:
        *_, other, first = owners.values()
        raise ValueError(
            f"{first} and {other} have different tokenizers, so they cannot read the same rows: name models of one."
        )
    for name, own in found.items():
        if tokenizer is not None and own.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"{name} has another tokenizer than the rows: prepare the text with it, or use the method teacher."
            )


def check_options(method: str, options: dict[str, Any]) -> None:
    """Raise a ValueError for an unknown method, an option that it does not have, or none of the option's choices."""
    known = {option.name: option for option in estimator_class(method).options}
    if foreign := [name for name in options if name not in known]:
        raise ValueError(f"{', '.join(foreign)}: not an option of the method {method}; leave it out.")
    for name, value in options.items():
        if (choices := known[name].choices) and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def option_table() -> dict[str, Any]:
    """All methods, and each option once, with its default for each method that has it."""
    options: dict[str, dict[str, Any]] = {}
    for method, kind in ESTIMATORS.items():
        for option in kind.options:
            told = {**asdict(option), "choices": list(option.choices)}
            default = told.pop("default")
            options.setdefault(option.name, {**told, "methods": {}})["methods"][method] = default
    return {"methods": list(ESTIMATORS), "options": list(options.values())}


def write_option_table() -> None:
    """Write `option_table` where the command line reads it."""
    write_atomically(OPTIONS_FILE, json.dumps(option_table(), indent=2) + "\n")
