"""Stopping early: which measurement of a run is its best one, and when enough others have followed it.

Everything is read from the logged measurements. So a resumed run stops where the uninterrupted one would have, and a
run that stopped early is known to be finished.
"""

from numbers import Real
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from modeling_eem.training.run_arguments import RunArguments

LAST = "the last step's"


def kept_model(arguments: RunArguments) -> str:
    """Which weights a run leaves in `output_dir`, in words."""
    if not arguments.load_best_model_at_end:
        return LAST
    return f"the best measured by {_metric(arguments)}"


def _metric(arguments: RunArguments) -> str:
    return str(arguments.metric_for_best_model).removeprefix("eval_")


def stopped_early(arguments: RunArguments, state: TrainerState) -> bool:
    """Whether the last `early_stopping_patience` measurements are all no better than one before them."""
    if arguments.early_stopping_patience is None:
        return False
    name = f"eval_{_metric(arguments)}"
    sign = -1 if arguments.greater_is_better else 1
    # `eval_on_start` measures a model of step 0, which no checkpoint holds.
    measured = [entry for entry in state.log_history if isinstance(entry.get(name), Real) and entry["step"] > 0]
    # By step: with `eval_on_start` a resumed run measures its first step again.
    values = list({entry["step"]: sign * entry[name] for entry in measured}.values())
    return bool(values) and len(values) - 1 - values.index(min(values)) >= arguments.early_stopping_patience


class StopEarlyCallback(TrainerCallback):
    """Ends a run after `early_stopping_patience` measurements without a better one.

    transformers' own counts them in memory: a resumed run would begin to count anew.
    """

    def on_evaluate(self, args: RunArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if stopped_early(args, state):
            control.should_training_stop = True
