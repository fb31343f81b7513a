"""Fine-tune a pretrained model on a few documents of one kind, with every loss: which one should a user run?

    python studies/fine_tuning/fine_tuning.py --model runs/smollm2 --data math_train.parquet --kind gsm8k-train \
        --general general_validation.parquet --output runs/fine-tuning --records studies/fine_tuning

Documents of one kind are split by chance into students', teacher's, validation and test documents. Cross-entropy first
chooses the learning rate, on the validation documents; all losses then use it. Entropies come from two models: the
pretrained one before training ("self"), and the same after one pass over many other documents of the kind ("teacher").
After each epoch the validation documents are measured. Test documents and general text are measured where early
stopping stops (the lowest validation value) and at the end, in bits a byte. Finished runs are kept in OUTPUT.
"stages" are the teacher's entropies as it learnt: after a third of its steps, two thirds and all of them, for the
first, second and last third of the student's.

Two rivals stand beside the token losses: label smoothing, and distillation, the divergence from the teacher's whole
distributions, of which a surprisal is one number.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import typer
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from eem.console import one_line_errors, quiet_loading
from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.tokenizer import token_bytes
from modeling_eem.entropy import CausalEntropy
from modeling_eem.files import write_atomically
from modeling_eem.report import Table, write_results
from modeling_eem.training import TOKEN_LOSSES, TokenWeightedTrainer, TokenWeightedTrainingArguments

RATES = (2e-5, 5e-5, 1.5e-4)
SMOOTHING = 0.1
STAGES = 3
LENGTH = 256  # tokens of a row; a longer document gives its beginning
BATCH = 4


@dataclass(frozen=True)
class Method:
    """A loss, and whose entropies it reads: "", "self", "teacher" or, of an unfinished teacher first, "stages"."""

    loss: str
    entropies: str = ""

    @property
    def name(self) -> str:
        return f"{self.loss}, {self.entropies}" if self.entropies else self.loss


CONTROL = Method("cross_entropy")
METHODS = [  # in the order they run
    CONTROL,
    Method("hinge", "teacher"),
    Method("complement", "self"),
    Method("distance", "teacher"),
    Method("distillation", "teacher"),
    Method("label_smoothing"),
    Method("selective", "self"),
    Method("selective", "teacher"),
    Method("mile"),
    Method("focal"),
    Method("complement", "teacher"),
    Method("hinge", "stages"),
    # `hinge` and `distance` with the model's own surprisals are 0 before the first step, and so is their gradient.
]


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
            return [sum(nats) / math.log(2) for nats in surprisals(model, self.rows)]
        finally:
            if autocast is not None:
                model.forward = autocast


def surprisals(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """The cross-entropy of each token but the first, in nats."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    values = CausalEntropy(model)(input_ids=ids, attention_mask=mask).values
    return [row[1 : len(known)].tolist() for row, known in zip(values, rows)]


class MeasureEpochs(TrainerCallback):
    """Measures the validation documents after each epoch, and keeps the weights where that is the lowest so far."""

    def __init__(self, validation: Sample):
        self.validation = validation
        self.values: list[float] = []
        self.best: dict[str, torch.Tensor] = {}

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        model.eval()
        self.values.append(sum(self.validation.bits(model)) / sum(self.validation.num_bytes))
        if self.values[-1] == min(self.values):
            self.best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.train()


class KeepStages(TrainerCallback):
    """Saves the teacher at the end of each stage of its training."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        for stage, folder in enumerate(self.folders, start=1):
            if state.global_step == round(state.max_steps * stage / len(self.folders)):
                model.save_pretrained(folder)


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


def bits_of(samples: dict[str, Sample], model: PreTrainedModel) -> dict[str, list[float]]:
    return {name: sample.bits(model) for name, sample in samples.items()}


def train(
    folder: Path,
    method: Method,
    rate: float,
    rows: dict[str, list],
    callback: TrainerCallback,
    *,
    epochs: int,
    seed: int,
    pad: int,
    bf16: bool,
    teacher: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """A copy of the pretrained model, trained on `rows`, AdamW, the rate constant after two steps."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.pad_token_id = pad
    options = {
        "learning_rate": rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "bf16": bf16,
        "seed": seed,
    }
    given = {
        "model": model,
        "train_dataset": Dataset.from_dict(rows),
        "callbacks": [callback],
    }
    with TemporaryDirectory() as output:
        if method.loss in TOKEN_LOSSES:
            columns = [name for name in rows if name.startswith("token_entropies")] or ["token_entropies"]
            args = TokenWeightedTrainingArguments(
                output_dir=output, token_loss=method.loss, entropy_columns=columns, **options
            )
            trainer = TokenWeightedTrainer(args=args, **given)
        else:
            args = TrainingArguments(output_dir=output, **options)
            trainer = RivalTrainer(
                args=args,
                data_collator=CausalCollator(pad_token_id=pad, vocab_size=model.config.vocab_size, max_length=LENGTH),
                teacher=teacher if method.entropies else None,
                **given,
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


class Results:
    """Finished runs by name, kept in a file as soon as they end."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.runs: dict[str, Any] = {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["settings"] != settings:
                raise ValueError(f"{path} was made with other settings: choose another --output.")
            self.runs = kept["runs"]
        self.settings = settings

    def keep(self, name: str, run: dict[str, Any]) -> None:
        self.runs[name] = run
        write_atomically(self.path, json.dumps({"settings": self.settings, "runs": self.runs}))


def per_byte(bits: Sequence[Sequence[float]], num_bytes: Sequence[int]) -> float:
    """Of all seeds together."""
    return float(np.sum(bits) / np.sum(num_bytes) / len(bits))


def difference(bits: Sequence[Sequence[float]], control: Sequence[Sequence[float]], num_bytes: Sequence[int]) -> str:
    """Bits a byte less the control's, and 95 % of what resampled seeds and documents give, the same for both."""
    less_SD = np.subtract(bits, control)
    counts_D = np.asarray(num_bytes)
    draws = np.random.default_rng(0)
    values = []
    for _ in range(10_000):
        seeds, rows = (draws.integers(size, size=size) for size in less_SD.shape)
        values.append(less_SD[np.ix_(seeds, rows)].sum() / counts_D[rows].sum() / len(seeds))
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{less_SD.sum() / counts_D.sum() / len(less_SD):+.4f} ({low:+.4f} … {high:+.4f})"


def table_of(runs: dict[str, Any]) -> Table:
    rows: list[tuple] = []
    num_bytes = runs["bytes"]
    for name, key in (("before training", "before"), ("the teacher itself", "teacher")):
        values = [per_byte([runs[key][what]], num_bytes[what]) for what in ("test", "general")]
        rows.append((name, "", *values, "", *values))
    seeds_of = {
        method.name: [run for key, run in runs.items() if key.rsplit(" #", 1)[0] == method.name] for method in METHODS
    }
    for name, seeds in seeds_of.items():
        if seeds:
            control = values_of(seeds_of[CONTROL.name][: len(seeds)])
            values = [
                per_byte([run[when][what] for run in seeds], num_bytes[what])
                for when in ("best", "end")
                for what in ("test", "general")
            ]
            less = "" if name == CONTROL.name else difference(values_of(seeds), control, num_bytes["test"])
            stops = "/".join(str(run["stop"]) for run in seeds)
            rows.append((name, stops, *values[:2], less, *values[2:]))
    return Table(
        columns=("loss, entropies", "stopped after", "test", "general", "test, less", "test, end", "general, end"),
        rows=rows,
        title="Fine-tuning: bits a byte",
        notes=(
            "Stopped after: epochs at which validation text was best, one a seed. Test: unseen documents of the kind "
            "trained on; less: than cross-entropy, and the 95 % of it (seeds and documents resampled together). "
            "General: other text. The last two columns are the same after the last epoch.",
        ),
        formats=dict.fromkeys(("test", "general", "test, end", "general, end"), ".4f"),
    )


def values_of(seeds: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [run["best"]["test"] for run in seeds]


@one_line_errors()
def main(
    model: Annotated[Path, typer.Option(help="Folder of the pretrained causal model, with its tokenizer.")],
    data: Annotated[Path, typer.Option(help="Parquet with columns text and source.")],
    kind: Annotated[str, typer.Option(help="Documents of this source.")],
    general: Annotated[Path, typer.Option(help="Parquet with a column text, of which forgetting is measured.")],
    output: Annotated[Path, typer.Option(help="Folder for finished runs and the teacher.")],
    records: Annotated[Path, typer.Option(help="Folder for the record.")],
    documents: Annotated[int, typer.Option(min=4, help="Documents of a student.")] = 24,
    teacher_documents: Annotated[int, typer.Option(min=4, help="Other documents, read once by the teacher.")] = 240,
    epochs: Annotated[int, typer.Option(min=1)] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="Samples of students' documents.")] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    bf16: Annotated[bool, typer.Option(help="Train under bfloat16 autocast; all is measured in float32.")] = False,
) -> None:
    """Run every method, each seed, and write the record."""
    torch.set_num_threads(threads)
    quiet_loading()
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = pq.read_table(data, columns=["text"], filters=[("source", "=", kind)])["text"].to_pylist()
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    validation, test, taught = 16, 60, teacher_documents
    if len(texts) < (needed := validation + test + taught + seeds * documents):
        raise ValueError(f"{data} has {len(texts)} documents of {kind!r}, and {needed} are needed: ask for fewer.")
    settings = {
        "model": model.name,
        "data": data.name,
        "general": general.name,
        "kind": kind,
        "documents": documents,
        "teacher_documents": teacher_documents,
        "epochs": epochs,
        "length": LENGTH,
        "batch": BATCH,
        "rates": list(RATES),
        "bf16": bf16,
    }
    held_out = Sample.of(texts[:validation], tokenizer)
    others = {
        "test": Sample.of(texts[validation : validation + test], tokenizer),
        "general": Sample.of(pq.read_table(general, columns=["text"])["text"].to_pylist()[::12][:12], tokenizer),
    }
    first_student = validation + test + taught
    results = Results(output / "results.json", settings)
    pretrained = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    common = {"pad": tokenizer.pad_token_id or 0, "bf16": bf16}
    if "before" not in results.runs:
        results.keep("bytes", {name: sample.num_bytes for name, sample in others.items()})
        results.keep("before", bits_of(others, pretrained))

    def rows_of(seed: int) -> list[list[int]]:
        begin = first_student + seed * documents
        return Sample.of(texts[begin : begin + documents], tokenizer).rows

    def run(name: str, method: Method, rate: float, seed: int, entropies: Sequence[list[list[float]]] = ()) -> None:
        """Entropies: of each stage, of each row."""
        if name in results.runs:
            return
        began = time.monotonic()
        rows: dict[str, list] = {"input_ids": rows_of(seed)}
        for stage, values in enumerate(entropies, start=1):
            column = "token_entropies" if stage == len(entropies) else f"token_entropies_{stage}"
            rows[column] = [[math.nan, *row] for row in values]
        measure = MeasureEpochs(held_out)
        trained = train(model, method, rate, rows, measure, epochs=epochs, seed=seed, teacher=teacher, **common)
        stop = int(np.argmin(measure.values))
        end = best = bits_of(others, trained)
        if stop < epochs - 1:
            trained.load_state_dict(measure.best)
            best = bits_of(others, trained)
        seconds = time.monotonic() - began
        kept = {"validation": measure.values, "stop": stop + 1, "best": best, "end": end, "seconds": seconds}
        results.keep(name, kept | asdict(method) | {"rate": rate})
        print(f"{name}: {measure.values}, {seconds:.0f} s", flush=True)

    teacher = None
    for rate in RATES:
        run(f"rate {rate:g}", CONTROL, rate, 0)
    rate = min(RATES, key=lambda r: min(results.runs[f"rate {r:g}"]["validation"]))
    results.keep(f"{CONTROL.name} #0", results.runs[f"rate {rate:g}"])

    stages = [output / f"teacher-{stage + 1}" for stage in range(STAGES)]
    if not all((folder / "config.json").exists() for folder in stages):
        read = Sample.of(texts[validation + test : first_student], tokenizer).rows
        train(model, CONTROL, rate, {"input_ids": read}, KeepStages(stages), epochs=1, seed=0, **common)
    teachers = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in stages]
    teacher = teachers[-1]
    if "teacher" not in results.runs:
        results.keep("teacher", bits_of(others, teacher))
    for seed in range(seeds):
        as_it_learns = [surprisals(one, rows_of(seed)) for one in teachers]
        given = {"self": [surprisals(pretrained, rows_of(seed))], "teacher": as_it_learns[-1:], "stages": as_it_learns}
        for method in METHODS:
            run(f"{method.name} #{seed}", method, rate, seed, given.get(method.entropies, ()))
        content = {"settings": settings | {"rate": rate}, "runs": results.runs}
        write_results(records, "fine-tuning", [table_of(results.runs)], content)


if __name__ == "__main__":
    typer.run(main)
