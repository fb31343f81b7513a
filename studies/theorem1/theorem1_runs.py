"""What both Theorem 1 experiments share: the methods, one training run with its curves, results that survive a kill.

A run trains a causal model with one token loss through `TokenWeightedTrainer`, and measures plain cross-entropy along
the way on three samples: training rows, a validation sample that alone says when to stop, and a test sample that
says nothing to the training.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from modeling_eem.data import CausalCollator
from modeling_eem.training import (
    TOKEN_LOSSES,
    TokenWeightedTrainer,
    TokenWeightedTrainingArguments,
)

Measure = Callable[[PreTrainedModel], float]


class HeldOutCallback(TrainerCallback):
    """Calls `measure(model)` about `points` times on the way, the last time at the end, and keeps `(step, value)`."""

    def __init__(self, measure: Callable[[PreTrainedModel], float], points: int):
        self.measure = measure
        self.points = points
        self.values: list[tuple[int, float]] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        every = max(state.max_steps // self.points, 1)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self.values.append((state.global_step, self.measure(model)))


@dataclass(frozen=True)
class Method:
    """A token loss and which entropies it is given; `target` is "" for a loss that needs none."""

    loss: str
    target: str = ""


CONTROL = Method("cross_entropy")


def all_methods(targets: Sequence[str]) -> list[Method]:
    """Every loss of the registry, those that need entropies once with each target."""
    return [
        Method(name, target)
        for name, loss in TOKEN_LOSSES.items()
        for target in (targets if loss.needs_entropies else [""])
    ]


@dataclass(frozen=True)
class Schedule:
    """How a run trains; the learning rate is constant after 20 steps of warm-up.

    Attributes:
        points: how often the run is measured, at equal distances.
        entropy_threshold: τ of `threshold`, in nats.
    """

    steps: int
    batch_size: int
    learning_rate: float
    points: int
    entropy_threshold: float


@dataclass(frozen=True)
class Key:
    """What a run follows from, beside the settings that all runs share."""

    source: str
    size: int
    seed: int
    loss: str
    target: str


@dataclass(frozen=True)
class Curves:
    """What was measured at each of `steps`, in the experiment's unit, on training rows, validation and test sample."""

    steps: list[int]
    train: list[float]
    validation: list[float]
    test: list[float]

    @property
    def stop(self) -> int:
        """Where early stopping stops: the index of the lowest value of the validation sample."""
        return min(range(len(self.steps)), key=self.validation.__getitem__)


class ResultFile:
    """`results`: curves of finished runs, kept as JSON lines, one appended as soon as its run ends.

    The first line holds the settings that all runs share. A line torn by a kill is dropped: its run is run again.

    Raises:
        ValueError: if the file was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.results: dict[Key, Curves] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        header, *lines = whole.splitlines() or [json.dumps(settings)]
        if json.loads(header) != json.loads(json.dumps(settings)):
            raise ValueError(f"{path} was made with other settings: choose another --output.")
        path.write_text("".join(f"{line}\n" for line in [header, *lines]))
        for line in lines:
            run = json.loads(line)
            self.results[Key(**run["key"])] = Curves(**run["curves"])

    def append(self, key: Key, curves: Curves, seconds: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"key": asdict(key), "curves": asdict(curves), "seconds": seconds}) + "\n")
        self.results[key] = curves


def tiny_llama(width: int, layers: int, length: int, vocab_size: int, **special_tokens: int) -> LlamaForCausalLM:
    """A Llama of the method's shape: four heads, a feed-forward part four times as wide."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        **special_tokens,
    )
    return LlamaForCausalLM(config)


def train(
    model: PreTrainedModel,
    key: Key,
    rows: Dataset,
    collator: CausalCollator,
    schedule: Schedule,
    measures: Mapping[str, Measure],
) -> tuple[Curves, float]:
    """Train `model` with the key's loss, and measure it on the way; nothing is written.

    Args:
        rows: `input_ids`, and `token_entropies` (nats) where the loss needs them.
        measures: "train", "validation" and "test".

    Returns:
        The curves, and the seconds that they took.
    """
    began = time.monotonic()
    values: dict[str, list[float]] = {name: [] for name in measures}

    def measure_all(model: PreTrainedModel) -> float:
        model.eval()
        for name, measure in measures.items():
            values[name].append(measure(model))
        model.train()
        return values["test"][-1]

    callback = HeldOutCallback(measure_all, schedule.points)
    with TemporaryDirectory() as folder:
        trainer = TokenWeightedTrainer(
            model=model,
            args=TokenWeightedTrainingArguments(
                output_dir=folder,
                token_loss=key.loss,
                entropy_threshold=schedule.entropy_threshold,
                learning_rate=schedule.learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=20,
                max_steps=schedule.steps,
                per_device_train_batch_size=schedule.batch_size,
                max_grad_norm=1.0,
                weight_decay=0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                seed=key.seed,
            ),
            data_collator=collator,
            train_dataset=rows,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    curves = Curves(steps=[step for step, _ in callback.values], **values)
    return curves, time.monotonic() - began
