"""Models from their folders, and the methods of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem.codec.codec import Codec
from modeling_eem.codec.integer_model import SIZES_FILE, IntegerModel
from modeling_eem.entropy.registry import ESTIMATORS
from modeling_eem.files import short_names
from modeling_eem.loading import ModelKind, check_tokenizer, load_config, load_model, own_tokenizer
from modeling_eem.models.modeling_eem import EEMForCausalLM

Kind = Literal["causal", "eem", "token_classifier", "codec"]

STORED = "stored"
# The methods of each kind of model; the default comes first.
METHODS: dict[Kind, tuple[str, ...]] = {
    "causal": ("causal",),
    "eem": ("exact", "sliding", "occlusion", "gradient_input"),
    "token_classifier": ("regression",),
    "codec": (STORED,),
}


@dataclass(frozen=True)
class ViewedModel:
    """A model under the name that the page shows.

    Attributes:
        name: the end of its folder's name that distinguishes it from the others.
        model: the model; for a codec model's folder a `Codec`.
    """

    name: str
    folder: str
    kind: Kind
    model: PreTrainedModel | Codec
    tokenizer: PreTrainedTokenizerBase

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it has."""
        return METHODS[self.kind]

    @property
    def eem(self) -> EEMForCausalLM:
        """The model, typed as an entropy estimation model."""
        return cast(EEMForCausalLM, self.model)


def load_viewed(folders: Sequence[str]) -> list[ViewedModel]:
    """Load checkpoints and codec models, on the accelerator if there is one.

    Args:
        folders: folders, or names on the Hub, of causal models, entropy estimation models, token classifiers and codec
            models, each with its tokenizer.

    Raises:
        ValueError: as in `loading.load_model`, and for a folder given twice, an autoencoder, or no tokenizer.
    """
    if len(set(folders)) < len(folders):
        raise ValueError("a folder is named twice: name each model once.")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return [_load(folder, name, device or torch.device("cpu")) for folder, name in zip(folders, short_names(folders))]


def default_methods(models: Sequence[ViewedModel]) -> list[str]:
    """The first method of each kind of model among `models`."""
    return list(dict.fromkeys(viewed.methods[0] for viewed in models))


def check_methods(models: Sequence[ViewedModel], methods: Sequence[str]) -> None:
    """Raise a ValueError for a method that none of the models has."""
    known = list(dict.fromkeys(method for viewed in models for method in viewed.methods))
    for method in methods:
        if method not in known:
            hint = " It takes two models: use eem entropy." if method in ("two_models", "teacher") else ""
            raise ValueError(f"these models have no method {method!r}, only {', '.join(known)}.{hint}")


def _load(folder: str, name: str, device: torch.device) -> ViewedModel:
    if (Path(folder) / SIZES_FILE).is_file():
        codec = Codec.from_pretrained(folder)
        return ViewedModel(name, folder, "codec", codec, cast(IntegerModel, codec.model).tokenizer)
    config = load_config(folder)
    kind: Kind = "eem" if config.model_type == "eem" else "causal"
    if any(str(name).endswith("ForTokenClassification") for name in config.architectures or []):
        kind = "token_classifier"
    model_kind: ModelKind = "token_classifier" if kind == "token_classifier" else "causal"
    model = load_model(folder, model_kind)
    tokenizer = own_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer: copy the model's into it, with tokenizer.save_pretrained.")
    check_tokenizer(config, tokenizer, folder)
    return ViewedModel(name, folder, kind, model.to(device), tokenizer)  # type: ignore[arg-type]


assert {method for methods in METHODS.values() for method in methods} <= {*ESTIMATORS, STORED}
