"""Fine-tune a pretrained model on a few documents of one kind, with every loss: which one should a user run?

    python studies/losses_on_text/fine_tuning.py --model runs/smollm2 --data math_train.parquet --kind gsm8k-train \
        --general general_validation.parquet --output runs/fine-tuning --records studies/losses_on_text

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

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from text_runs import (
    BATCH,
    CONTROL,
    LENGTH,
    MeasureHeldOut,
    Method,
    Results,
    Sample,
    difference,
    measured,
    per_byte,
    surprisals,
    train,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

from eem.console import one_line_errors, quiet_loading
from modeling_eem.entropy import CausalEntropy
from modeling_eem.report import Table, write_results

RATES = (2e-5, 5e-5, 1.5e-4)
STAGES = 3
# Entropies are "self", "teacher" or, of an unfinished teacher first, "stages".
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


class KeepStages(TrainerCallback):
    """Saves the teacher at the end of each stage of its training."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders

    def on_step_end(self, args: Any, state: Any, control: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        for stage, folder in enumerate(self.folders, start=1):
            if state.global_step == round(state.max_steps * stage / len(self.folders)):
                model.save_pretrained(folder)


def bits_of(samples: dict[str, Sample], model: PreTrainedModel) -> dict[str, list[float]]:
    return {name: sample.bits(model) for name, sample in samples.items()}


def causal_model(folder: Path, pad: int) -> PreTrainedModel:
    """In float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = pad
    return model


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
            less = "" if name == CONTROL.name else str(difference(values_of(seeds), control, num_bytes["test"]))
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
    loaded = partial(causal_model, pad=tokenizer.pad_token_id or 0)
    pretrained = loaded(model)
    if "before" not in results.runs:
        results.keep("bytes", {name: sample.num_bytes for name, sample in others.items()})
        results.keep("before", bits_of(others, pretrained))

    def options(rate: float, epochs: int, seed: int) -> dict[str, Any]:
        return {"learning_rate": rate, "num_train_epochs": epochs, "seed": seed, "warmup_steps": 2, "bf16": bf16}

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
        measure = MeasureHeldOut(held_out, every=math.ceil(documents / BATCH))  # steps, an epoch
        trained = train(loaded(model), method, rows, measure, teacher, **options(rate, epochs, seed))
        kept = measured(trained, measure, partial(bits_of, others)) | {"seconds": time.monotonic() - began}
        results.keep(name, kept | asdict(method) | {"rate": rate})
        print(f"{name}: {measure.values}, {kept['seconds']:.0f} s", flush=True)

    teacher = None
    for rate in RATES:
        run(f"rate {rate:g}", CONTROL, rate, 0)
    rate = min(RATES, key=lambda r: min(results.runs[f"rate {r:g}"]["validation"]))
    results.keep(f"{CONTROL.name} #0", results.runs[f"rate {rate:g}"])

    stages = [output / f"teacher-{stage + 1}" for stage in range(STAGES)]
    if not all((folder / "config.json").exists() for folder in stages):
        read = Sample.of(texts[validation + test : first_student], tokenizer).rows
        train(loaded(model), CONTROL, {"input_ids": read}, KeepStages(stages), **options(rate, epochs=1, seed=0))
    teachers = [loaded(folder) for folder in stages]
    teacher = teachers[-1]
    if "teacher" not in results.runs:
        results.keep("teacher", bits_of(others, teacher))
    for seed in range(seeds):
        as_it_learns = [surprisals(CausalEntropy(one), rows_of(seed)) for one in teachers]
        given = {
            "self": [surprisals(CausalEntropy(pretrained), rows_of(seed))],
            "teacher": as_it_learns[-1:],
            "stages": as_it_learns,
        }
        for method in METHODS:
            run(f"{method.name} #{seed}", method, rate, seed, given.get(method.entropies, ()))
        content = {"settings": settings | {"rate": rate}, "runs": results.runs}
        write_results(records, "fine-tuning", [table_of(results.runs)], content)


if __name__ == "__main__":
    typer.run(main)
