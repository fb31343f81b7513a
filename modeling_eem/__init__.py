"""Entropy estimation models and masked mixers for transformers. Importing it registers them with the Auto classes.

A program that only compresses needs no model, no PyTorch and no transformers. With MODELING_EEM_CODEC_ONLY=1 in its
environment, importing this registers nothing until you use one of the names below.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or not os.environ.get("MODELING_EEM_CODEC_ONLY"):
    from .registration import (
        EEMAutoencoder,
        EEMAutoencoderConfig,
        EEMConfig,
        EEMForCausalLM,
        EEMModel,
        MaskedMixerConfig,
        MaskedMixerForCausalLM,
        MaskedMixerForTokenClassification,
        MaskedMixerModel,
    )

__all__ = [
    "EEMAutoencoder",
    "EEMAutoencoderConfig",
    "EEMConfig",
    "EEMForCausalLM",
    "EEMModel",
    "MaskedMixerConfig",
    "MaskedMixerForCausalLM",
    "MaskedMixerForTokenClassification",
    "MaskedMixerModel",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import registration

    return getattr(registration, name)
