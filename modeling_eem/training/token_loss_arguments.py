"""The arguments of a token loss, as fields beside any Trainer's own arguments."""

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from transformers import TrainingArguments

from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.training.token_losses import TOKEN_LOSSES, TokenLossOptions


@dataclass
class TokenLossArguments:
    """The token loss and its parameters. Put this class before the arguments of any Trainer:

        @dataclass
        class MySFTConfig(TokenLossArguments, SFTConfig): ...

    Args:
        token_loss: a name of `TOKEN_LOSSES`.
        entropy_normalization: ê of `complement`: "minmax" within each document segment, or "none", clipped to [0, 1].
        entropy_columns: the training set's columns of entropies (nats, one a token), one a stage of training: with
            `["token_entropies_1", "token_entropies"]` a student first follows an early teacher, then a later one.
        entropy_stage_steps: the optimizer step at which each stage after the first begins; if empty, all stages are
            equally long.
        entropy_threshold, focal_gamma, mile_gamma, selected_fraction: see `TokenLossOptions`.
        regression_alignment: which output of a token-classification model is a token's entropy: "prefix", the output
            before the token, which has not seen it; "token", the output at the token. None: as the model was trained,
            or "prefix" for a new one.

    Raises:
        ValueError: for an unknown name, a number out of range, stages that do not match their columns, or a stage that
            begins after the last step.
    """

    token_loss: str = "cross_entropy"
    entropy_normalization: str = "minmax"
    entropy_columns: list[str] = field(default_factory=lambda: [TOKEN_ENTROPIES])
    entropy_stage_steps: list[int] = field(default_factory=list)
    entropy_threshold: float = TokenLossOptions.entropy_threshold
    focal_gamma: float = TokenLossOptions.focal_gamma
    mile_gamma: float = TokenLossOptions.mile_gamma
    selected_fraction: float = TokenLossOptions.selected_fraction
    regression_alignment: str | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("token_loss", self.token_loss, tuple(TOKEN_LOSSES)),
            ("entropy_normalization", self.entropy_normalization, ("minmax", "none")),
            ("regression_alignment", self.regression_alignment or "prefix", ("prefix", "token")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
        _ = self.token_loss_options  # checks their values
        if not self.entropy_columns or len(set(self.entropy_columns)) < len(self.entropy_columns):
            raise ValueError(f"entropy_columns must be different names, at least one; got {self.entropy_columns}.")
        if steps := self.entropy_stage_steps:
            expected = len(self.entropy_columns) - 1
            if len(steps) != expected or steps[0] < 1 or any(a >= b for a, b in pairwise(steps)):
                raise ValueError(
                    f"entropy_stage_steps must be {expected} growing numbers of steps, one for each of "
                    f"entropy_columns after the first; got {steps}."
                )
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]: of the Trainer's arguments, next in line
        max_steps = self.max_steps  # pyright: ignore[reportAttributeAccessIssue]: likewise
        if max_steps > 0:  # else the training counts its steps, and checks
            self.check_stages(max_steps)

    def check_stages(self, max_steps: int) -> None:
        """ValueError for a stage that begins after the last step."""
        if self.entropy_stage_steps and max_steps <= (last := self.entropy_stage_steps[-1]):
            raise ValueError(
                f"entropy_stage_steps: a stage that begins at step {last} never comes in {max_steps} steps "
                "(max_steps): let it begin earlier."
            )

    def entropy_column(self, step: int, max_steps: int) -> str:
        """The column that is read after `step` of `max_steps` optimizer steps."""
        starts = self.entropy_stage_steps or equal_stage_steps(max_steps, len(self.entropy_columns))
        return self.entropy_columns[bisect_right(starts, step)]

    def check_no_stage_comes_back(self, step: int, max_steps_before: int, max_steps: int) -> None:
        """ValueError if a run that goes on after `step` with other `max_steps` would read an earlier column again."""
        if self.entropy_stage_steps or not step:
            return
        last, following = self.entropy_column(step - 1, max_steps_before), self.entropy_column(step, max_steps)
        if self.entropy_columns.index(following) < self.entropy_columns.index(last):
            starts = equal_stage_steps(max_steps_before, len(self.entropy_columns))
            raise ValueError(
                f"at step {step} of {max_steps_before} the run had come to {last}, and a run of {max_steps} steps has "
                f"not yet: set entropy_stage_steps to {starts}, where the stages of entropy_columns began."
            )

    @property
    def token_loss_options(self) -> TokenLossOptions:
        return TokenLossOptions(self.entropy_threshold, self.focal_gamma, self.mile_gamma, self.selected_fraction)


def equal_stage_steps(max_steps: int, stages: int) -> list[int]:
    """The step at which each of equally long stages after the first begins."""
    return [max_steps * stage // stages for stage in range(1, stages)]


@dataclass
class TokenWeightedTrainingArguments(TokenLossArguments, TrainingArguments):
    """transformers' `TrainingArguments` and the token loss."""

    @property
    def output_folder(self) -> Path:
        """`output_dir` as a path; without one, transformers chooses a name."""
        assert self.output_dir is not None
        return Path(self.output_dir)


__all__ = ["TokenLossArguments", "TokenWeightedTrainingArguments"]
