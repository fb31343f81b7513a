"""What both studies of losses on real text share: samples, one training run, the rivals, finished runs, intervals."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.tokenizer import token_bytes
from modeling_eem.entropy import CausalEntropy, TokenEntropies
from modeling_eem.files import write_atomically
from modeling_eem.training import TOKEN_LOSSES, TokenWeightedTrainer, TokenWeightedTrainingArguments

SMOOTHING = 0.1
LENGTH = 256  # tokens of a row; a longer document gives its beginning
BATCH = 4
DRAWS = 10_000


@dataclass(frozen=True)
class Method:
    """A loss, and whose entropies it reads: "" for none."""

    loss: str
    entropies: str = ""

    @property
    def name(self) -> str:
        return f"{self.loss}, {self.entropies}" if self.entropies else self.loss


CONTROL = Method("cross_entropy")


@dataclass(frozen=True)
class Sample:
    """Rows of ids, BOS first, and how many bytes of text each holds."""

    rows: list[list[int]]
    num_bytes: list[int]

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> "Sample":
        rows = [
            [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:LENGTH]
            for text in texts
        ]
        return cls(rows, [sum(map(len, token_bytes(tokenizer, row[1:]))) for row in rows])

    def bits(self, model: PreTrainedModel) -> list[float]:
        """Of each row, in the model's own precision: accelerate's autocast stays on a model that it trains."""
        autocast = vars(model).pop("forward", None)
        try:
            return [sum(nats) / math.log(2) for nats in surprisals(CausalEntropy(model), self.rows)]
        finally:
            if autocast is not None:
                model.forward = autocast


class Estimator(Protocol):
    """An entropy estimator of ids."""

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor) -> TokenEntropies: ...


def surprisals(estimator: Estimator, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """The value of each token but the first; that of a causal model is its cross-entropy, in nats."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    values = estimator(input_ids=ids, attention_mask=mask).values
    return [row[1 : len(known)].tolist() for row, known in zip(values, rows)]


class MeasureHeldOut(TrainerCallback):
    """Measures the validation documents every so many steps, and keeps the weights where that is the lowest so far."""

    def __init__(self, validation: Sample, every: int):
        self.validation = validation
        self.every = every
        self.values: list[float] = []
        self.best: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        model.eval()
        self.values.append(sum(self.validation.bits(model)) / sum(self.validation.num_bytes))
        if self.values[-1] == min(self.values):
            self.best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()


class RivalTrainer(Trainer):
    """Label smoothing, or distillation: KL(teacher ‖ student), the mean over tokens, the teacher in float32."""

    def __init__(self, *args: Any, teacher: PreTrainedModel | None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits_BTV = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        labels_BT = inputs["labels"][:, 1:]
        logp_NV = F.log_softmax(logits_BTV[labels_BT != -100].float(), dim=-1)
        labels_N = labels_BT[labels_BT != -100]
        if self.teacher is None:
            return F.cross_entropy(logp_NV, labels_N, label_smoothing=SMOOTHING)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            known_BTV = self.teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            teacher_NV = F.log_softmax(known_BTV[:, :-1][labels_BT != -100].float(), dim=-1)
        return F.kl_div(logp_NV, teacher_NV, log_target=True, reduction="batchmean")


def train(
    model: PreTrainedModel,
    method: Method,
    rows: dict[str, list],
    callback: TrainerCallback,
    teacher: PreTrainedModel | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Train a model on `rows` with AdamW, the rate constant after its warm-up.

    Args:
        rows: `input_ids`, and a column of entropies, or one for each stage.
        teacher: of `distillation`.
        options: of TrainingArguments.
    """
    options = {
        "lr_scheduler_type": "constant_with_warmup",
        "per_device_train_batch_size": BATCH,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    } | options
    given = {"model": model, "train_dataset": Dataset.from_dict(rows), "callbacks": [callback]}
    with TemporaryDirectory() as output:
        if method.loss in TOKEN_LOSSES:
            columns = [name for name in rows if name.startswith("token_entropies")] or ["token_entropies"]
            args = TokenWeightedTrainingArguments(
                output_dir=output, token_loss=method.loss, entropy_columns=columns, **options
            )
            trainer = TokenWeightedTrainer(args=args, **given)
        else:
            config = model.config
            trainer = RivalTrainer(
                args=TrainingArguments(output_dir=output, **options),
                data_collator=CausalCollator(
                    pad_token_id=config.pad_token_id, vocab_size=config.vocab_size, max_length=LENGTH
                ),
                teacher=teacher if method.loss == "distillation" else None,
                **given,
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def measured(
    model: PreTrainedModel, callback: MeasureHeldOut, measure: Callable[[PreTrainedModel], Any]
) -> dict[str, Any]:
    """What is kept of a run that ended: `measure` of the model where early stopping stops, and at the end.

    `stop` counts validation measurements from 1. The model is left as it was best.
    """
    stop = int(np.argmin(callback.values))
    end = best = measure(model)
    if stop < len(callback.values) - 1:
        model.load_state_dict(callback.best)
        best = measure(model)
    return {"validation": callback.values, "stop": stop + 1, "best": best, "end": end}


class Results:
    """Finished runs by name, kept in a file as soon as they end."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.runs: dict[str, Any] = {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(f"{path} was made with other settings: choose another --output.")
            self.runs = kept["runs"]
        self.settings = settings

    def keep(self, name: str, run: dict[str, Any]) -> None:
        self.runs[name] = run
        write_atomically(self.path, json.dumps({"settings": self.settings, "runs": self.runs}))


@dataclass(frozen=True)
class Difference:
    """Bits a byte less the control's: the mean, the middle 95 % of the draws, a two-sided p-value of none."""

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} … {self.high:+.4f})"


def difference(
    bits: Sequence[Sequence[float]], control: Sequence[Sequence[float]], num_bytes: Sequence[int]
) -> Difference:
    """Of all seeds, `[s, d]`, and documents, `[d]`: both are drawn again together, the same for method and control.

    p is twice the smaller share of draws on either side of 0, and never below what the number of draws can show.
    """
    less_SD = np.subtract(bits, control)
    bytes_D = np.asarray(num_bytes)
    chance = np.random.default_rng(0)
    # How often each seed and each document is drawn; N draws.
    seeds_NS, documents_ND = (chance.multinomial(size, [1 / size] * size, size=DRAWS) for size in less_SD.shape)
    values = (seeds_NS @ less_SD * documents_ND).sum(1) / (documents_ND @ bytes_D) / len(less_SD)
    low, high = np.percentile(values, [2.5, 97.5])
    side = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0)) + 1
    mean = less_SD.sum() / bytes_D.sum() / len(less_SD)
    return Difference(float(mean), float(low), float(high), min(1.0, 2 * side / (DRAWS + 1)))


def per_byte(bits: Sequence[Sequence[float]], num_bytes: Sequence[int]) -> float:
    """Of all seeds together."""
    return float(np.sum(bits) / np.sum(num_bytes) / len(bits))
