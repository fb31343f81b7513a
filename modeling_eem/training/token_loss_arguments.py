"""The arguments of a token loss, as fields beside any Trainer's own arguments."""

import math
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions


@dataclass
class TokenLossArguments:
    """The token loss and its parameters. Put this class before the arguments of any Trainer:

        @dataclass
        class MySFTConfig(TokenLossArguments, SFTConfig): ...

    Args:
        token_loss: a name of `TOKEN_LOSSES`.
        entropy_normalization: ê of `complement`: "minmax" within each document segment, or "none", clipped to [0, 1].
        entropy_threshold, focal_gamma, mile_gamma, selected_fraction: see `TokenLossOptions`.
        regression_alignment: which output of a token-classification model is a token's entropy: "prefix", the output
            before the token, which has not seen it; "token", the output at the token.

    Raises:
        ValueError: for an unknown name, or a number out of range.
    """

    token_loss: str = "cross_entropy"
    entropy_normalization: str = "minmax"
    entropy_threshold: float = TokenLossOptions.entropy_threshold
    focal_gamma: float = TokenLossOptions.focal_gamma
    mile_gamma: float = TokenLossOptions.mile_gamma
    selected_fraction: float = TokenLossOptions.selected_fraction
    regression_alignment: str = "prefix"

    def __post_init__(self) -> None:
        for name, choices in {
            "token_loss": tuple(TOKEN_LOSSES),
            "entropy_normalization": ("minmax", "none"),
            "regression_alignment": ("prefix", "token"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        for name in ("entropy_threshold", "focal_gamma", "mile_gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0; got {getattr(self, name)}.")
        if not 0 < self.selected_fraction <= 1:
            raise ValueError(f"selected_fraction must lie above 0 and be at most 1; got {self.selected_fraction}.")
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]: of the Trainer's arguments, next in line

    @property
    def token_loss_options(self) -> TokenLossOptions:
        return TokenLossOptions(self.entropy_threshold, self.focal_gamma, self.mile_gamma, self.selected_fraction)


@dataclass
class TokenWeightedTrainingArguments(TokenLossArguments, TrainingArguments):
    """transformers' `TrainingArguments` and the token loss."""

    @property
    def output_folder(self) -> Path:
        """`output_dir` as a path; without one, transformers chooses a name."""
        assert self.output_dir is not None
        return Path(self.output_dir)


__all__ = ["TokenLossArguments", "TokenWeightedTrainingArguments"]
