"""Theorem 1 on real text: a small Llama, few documents, many epochs, every loss, entropies of four teachers.

    bash studies/losses_on_text/theorem1_text.sh KEPT HELD_OUT OTHER

Documents are of four kinds, in fixed shares, the same in every sample. A student is a Llama of 3 layers, 64 wide. It
sees the first 256 tokens of each of its documents, 16 times (or 8 times four times as many documents). Cross-entropy
chooses the learning rate, on a sample of documents of its own; all losses then use it. The teachers:

* larger: a Llama three times as wide, which read other documents of these kinds; its surprisals;
* other: a pretrained model with a tokenizer of its own; its surprisals, carried over by bytes;
* eem: the exact entropies of an entropy estimation model that uses its code, which read what the larger model read,
  in windows of eight tokens and, so that it knows the prefixes that exact entropies need, shorter ones;
* occlusion: that model's L1 occlusion, normalized, in `complement`, as published.

Rivals: label smoothing, and distillation from the larger model. Validation documents are measured 16 times on the way,
test documents where that is lowest and at the end. Intervals are of documents and seeds drawn together, and p-values
are corrected for their number (Holm). Finished runs are kept in OUTPUT, and the same command goes on.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas
import torch
import typer
from rich.console import Console
from rich.progress import track
from text_runs import BATCH, CONTROL, LENGTH, MeasureHeldOut, Method, Results, Sample, measured, surprisals, train
from theorem1_text_report import write_record
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    set_seed,
)

from eem.console import one_line_errors, quiet_loading
from modeling_eem import EEMForCausalLM
from modeling_eem.entropy import CausalEntropy, ExactEntropy, OcclusionEntropy, TeacherEntropy
from modeling_eem.entropy.base import EntropyEstimator
from modeling_eem.files import write_atomically

# Kind: share of a student's documents, held-out documents for validation, for test.
KINDS = {
    "wikipedia": (0.4, 16, 25),
    "gsm8k-train": (0.3, 12, 19),
    "standardebooks": (0.15, 6, 9),
    "wikipedia-math": (0.15, 6, 8),
}
WIDTH, LAYERS = 64, 3
EPOCHS = {40: 16, 160: 8}  # by the documents of a student
POINTS = 16
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
STUDENTS = 6  # samples of the largest size: one to choose rates on, and those of the seeds
THRESHOLD = 4.0  # of `threshold`, in nats
METHODS = [
    CONTROL,
    Method("distillation", "larger"),
    Method("label_smoothing"),
    *(
        Method(loss, teacher)
        for teacher in ("larger", "other", "eem")
        for loss in ("hinge", "distance", "selective", "complement", "threshold")
    ),
    Method("complement", "occlusion"),
    Method("focal"),
    Method("mile"),
]

app = typer.Typer(add_completion=False)


def counts_of(documents: int) -> dict[str, int]:
    """How many of each kind are in a student's sample."""
    return {kind: round(share * documents) for kind, (share, *_) in KINDS.items()}


@app.command("documents")
@one_line_errors()
def write_documents(
    train_file: Annotated[Path, typer.Option("--train", help="Parquet with text and source, without overlaps.")],
    held_out: Annotated[list[Path], typer.Option(help="Parquet files with text and source.")],
    output: Annotated[Path, typer.Option(help="Folder for teacher, students, validation and test documents.")],
    teacher_bytes: Annotated[int, typer.Option(help="Of documents for the teachers.")] = 12_000_000,
) -> None:
    """Split documents by chance: held out, students' (each sample in the kinds' shares), the teachers'."""
    chance = np.random.default_rng(0)
    known = {
        name: {kind: frame["text"].tolist() for kind, frame in frame.groupby("source")}
        for name, frame in {
            "train": pandas.read_parquet(train_file),
            "held out": pandas.concat(pandas.read_parquet(path) for path in held_out),
        }.items()
    }
    parts: dict[str, list[dict[str, Any]]] = {"teacher": [], "students": [], "validation": [], "test": []}
    for kind, (share, validation, test) in KINDS.items():
        texts = [known["held out"][kind][i] for i in chance.permutation(len(known["held out"][kind]))]
        if len(texts) < validation + test:
            raise ValueError(f"{len(texts)} held-out documents of {kind!r}, and {validation + test} are needed.")
        parts["validation"] += ({"text": text, "source": kind} for text in texts[:validation])
        parts["test"] += ({"text": text, "source": kind} for text in texts[validation : validation + test])
        texts = [known["train"][kind][i] for i in chance.permutation(len(known["train"][kind]))]
        taken = STUDENTS * counts_of(max(EPOCHS))[kind]
        parts["students"] += ({"text": text, "source": kind} for text in texts[:taken])
        left = share * teacher_bytes
        for text in texts[taken:]:
            if left > 0:
                parts["teacher"].append({"text": text, "source": kind})
                left -= len(text.encode())
    chance.shuffle(parts["teacher"])  # so that a run sees all kinds from its first step
    output.mkdir(parents=True, exist_ok=True)
    for name, documents in parts.items():
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        write_atomically(output / f"{name}.jsonl", "".join(lines))
        print(f"{name}: {len(documents)} documents, {sum(len(each['text'].encode()) for each in documents):,} bytes")


def read_documents(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def student_texts(students: Iterable[dict[str, str]], sample: int, documents: int) -> list[str]:
    """A sample's first documents of each kind: the smaller size is a part of the larger one."""
    texts = []
    for kind, count in counts_of(documents).items():
        first = sample * counts_of(max(EPOCHS))[kind]
        texts += [each["text"] for each in students if each["source"] == kind][first : first + count]
    return texts


class Teachers:
    """The values of each teacher for rows of the students' tokens."""

    def __init__(self, larger: Path, other: Path, eem: Path, tokenizer: PreTrainedTokenizerBase):
        self.larger = AutoModelForCausalLM.from_pretrained(larger, dtype=torch.float32).eval()
        model = EEMForCausalLM.from_pretrained(eem).eval()
        pretrained = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).eval()
        other_tokenizer = AutoTokenizer.from_pretrained(other)
        self.window = model.config.max_position_embeddings
        self.estimators = {
            "larger": CausalEntropy(self.larger),
            "other": TeacherEntropy(pretrained, other_tokenizer, tokenizer),
            "eem": ExactEntropy(model),
            "occlusion": OcclusionEntropy(model, metric="l1"),
        }

    def values(self, name: str, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        estimator = self.estimators[name]
        return self.in_windows(estimator, rows) if name in ("eem", "occlusion") else surprisals(estimator, rows)

    def in_windows(self, estimator: EntropyEstimator, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Rows are cut into windows of the model's length, each with the row's BOS."""
        size = self.window - 1
        cuts = [[[row[0], *row[start : start + size]] for start in range(1, len(row), size)] for row in rows]
        flat = iter(surprisals(estimator, [window for windows in cuts for window in windows]))
        return [[value for _ in windows for value in next(flat)] for windows in cuts]


def student(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@app.command()
@one_line_errors()
def run(
    documents: Annotated[Path, typer.Option(help="Folder that `documents` wrote.")],
    larger: Annotated[Path, typer.Option(help="Folder of a causal model of the same tokenizer.")],
    other: Annotated[Path, typer.Option(help="Folder of a causal model with a tokenizer of its own.")],
    eem: Annotated[Path, typer.Option(help="Folder of an entropy estimation model of the same tokenizer.")],
    output: Annotated[Path, typer.Option(help="Folder for finished runs.")],
    records: Annotated[Path, typer.Option(help="Folder for table, figure and JSON.")],
    seeds: Annotated[int, typer.Option(min=2, max=STUDENTS - 1)] = STUDENTS - 1,
    sizes: Annotated[list[int], typer.Option(help=f"Of {', '.join(map(str, EPOCHS))}.")] = list(EPOCHS),  # noqa: B006
) -> None:
    """Choose the rate, train every method on every sample of every size, and write the record."""
    torch.set_num_threads(1)
    quiet_loading()
    tokenizer = AutoTokenizer.from_pretrained(larger)
    teachers = Teachers(larger, other, eem, tokenizer)
    students = read_documents(documents / "students.jsonl")
    held_out = {name: read_documents(documents / f"{name}.jsonl") for name in ("validation", "test")}
    validation, test = (Sample.of([each["text"] for each in those], tokenizer) for those in held_out.values())
    results = Results(
        output / "results.json",
        {
            "larger": larger.name,
            "other": other.name,
            "eem": eem.name,
            "width": WIDTH,
            "layers": LAYERS,
            "length": LENGTH,
            "batch": BATCH,
            "points": POINTS,
            "rates": RATES,
            "threshold": THRESHOLD,
        },
    )

    def run_one(name: str, method: Method, size: int, seed: int, rate: float, entropies: list | None) -> None:
        if name in results.runs:
            return
        began = time.monotonic()
        texts = student_texts(students, seed, size)
        rows: dict[str, list] = {"input_ids": Sample.of(texts, tokenizer).rows}
        if entropies is not None:
            rows["token_entropies"] = [[math.nan, *row] for row in entropies]
        steps = math.ceil(size / BATCH) * EPOCHS[size]
        callback = MeasureHeldOut(validation, every=steps // POINTS)
        model = train(
            student(tokenizer, seed),
            method,
            rows,
            callback,
            teachers.larger,
            learning_rate=rate,
            max_steps=steps,
            warmup_steps=20,
            seed=seed,
            **({"entropy_threshold": THRESHOLD} if method.loss == "threshold" else {}),
        )
        kept = measured(model, callback, test.bits)
        kept |= {"size": size, "seed": seed, "rate": rate, "seconds": round(time.monotonic() - began, 1)}
        results.keep(name, asdict(method) | kept)

    for name, teacher in {"larger": teachers.larger, "other": None}.items():
        if f"bits of {name}" not in results.runs:
            nats = surprisals(teachers.estimators[name], test.rows) if teacher is None else None
            bits = [np.nansum(row) / math.log(2) for row in nats] if nats else test.bits(teacher)
            results.keep(f"bits of {name}", bits)
    results.keep("test", {"bytes": test.num_bytes, "source": [each["source"] for each in held_out["test"]]})
    for size in sizes:
        tries = {rate: f"{size}, rate {rate:g}" for rate in RATES}
        for rate, name in tries.items():
            run_one(name, CONTROL, size, STUDENTS - 1, rate, None)
        rate = min(RATES, key=lambda rate: min(results.runs[tries[rate]]["validation"]))
        results.keep(f"{size}, rate", rate)
        for seed in range(seeds):
            rows = Sample.of(student_texts(students, seed, size), tokenizer).rows
            known: dict[str, list] = {}
            for method in track(METHODS, f"{size} documents, seed {seed}", console=Console(stderr=True)):
                name, teacher = f"{method.name}, {size} #{seed}", method.entropies
                reads = teacher and method.loss != "distillation"
                if reads and name not in results.runs and teacher not in known:
                    known[teacher] = teachers.values(teacher, rows)
                run_one(name, method, size, seed, rate, known.get(teacher) if reads else None)
    write_record(records, results.settings, results.runs, METHODS)


if __name__ == "__main__":
    app()
