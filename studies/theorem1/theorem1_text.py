"""Theorem 1 on real text: a small Llama, few documents, many epochs; e from a model that read far more of the kind.

python studies/theorem1/theorem1_text.py --data data/text/general_train.parquet \
    --held-out data/text/general_validation.parquet --kind wikipedia --output runs/theorem1-text

First the teacher: the same Llama, trained once over as much text as its steps hold, none of it the students'. Its
cross-entropy of each token of a student's documents is that token's e (surprisal, nats). Then the students: every
token loss on the same few documents. Values are held-out bits per byte, by the honest count. Teacher checkpoints and
finished students are kept in OUTPUT, and the same command goes on where a kill left off.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from theorem1_report import Experiment, write_record
from theorem1_runs import Curves, Key, Measure, ResultFile, Schedule, all_methods, tiny_llama, train
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint

from eem.console import one_line_errors
from eem.training_progress import ProgressCallback
from modeling_eem.data import CausalCollator, Row, RowFormat, encode_text, windows
from modeling_eem.entropy import CausalEntropy
from modeling_eem.evaluation import held_out_code_length
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments

CONTEXT, WIDTH, LAYERS = 256, 128, 3
RESERVED_DOCUMENTS = 400  # for the students of all seeds; the teacher never sees them
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 8, 24, 48  # that are measured
TEACHER_BATCH_SIZE = 8
SCHEDULE = Schedule(steps=160, batch_size=8, learning_rate=2e-3, points=8, entropy_threshold=4.0)

app = typer.Typer(add_completion=False)


def llama(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    return tiny_llama(
        WIDTH,
        LAYERS,
        CONTEXT,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def texts_of_kind(path: Path, kind: str) -> list[str]:
    """The documents whose column `source` is `kind`."""
    texts = pq.read_table(path, columns=["text"], filters=[("source", "=", kind)])["text"].to_pylist()
    if not texts:
        raise ValueError(f"{path} has no document with source = {kind!r}: choose another --kind.")
    return texts


def rows_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, at_most: int | None = None) -> list[Row]:
    """The texts' windows; no more text is encoded than `at_most` rows need."""
    row_format = RowFormat.from_tokenizer(tokenizer, CONTEXT)
    rows: list[Row] = []
    for row in windows(((i, encode_text(tokenizer, text)) for i, text in enumerate(texts)), row_format):
        rows.append(row)
        if len(rows) == at_most:
            break
    return rows


def trained_teacher(
    folder: Path, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, steps: int
) -> PreTrainedModel:
    """One pass over as much text as the steps hold, no row twice; goes on from the last checkpoint."""
    if (folder / "model" / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(folder / "model")
    rows = rows_of(texts, tokenizer, at_most=steps * TEACHER_BATCH_SIZE)
    set_seed(0)
    model = llama(tokenizer)
    trainer = TokenWeightedTrainer(
        model=model,
        args=TokenWeightedTrainingArguments(
            output_dir=str(folder / "trainer"),
            learning_rate=3e-3,
            lr_scheduler_type="linear",
            warmup_steps=100,
            max_steps=steps,
            per_device_train_batch_size=TEACHER_BATCH_SIZE,
            max_grad_norm=1.0,
            weight_decay=0.0,
            logging_steps=100,
            save_steps=250,
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        data_collator=collator_for(tokenizer),
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows]),
        callbacks=[ProgressCallback("teacher")],
    )
    begun = (folder / "trainer").exists()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder / "trainer")) if begun else None)
    model.save_pretrained(folder / "model")
    return model


def collator_for(tokenizer: PreTrainedTokenizerBase) -> CausalCollator:
    return CausalCollator(tokenizer.pad_token_id, len(tokenizer), CONTEXT)


def with_entropies(rows: Sequence[Row], teacher: PreTrainedModel, collator: CausalCollator) -> Dataset:
    """The rows' ids, and the teacher's cross-entropy of each token in nats."""
    batch = collator(rows)
    entropies = CausalEntropy(teacher)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    lengths = [len(row["input_ids"]) for row in rows]
    return Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "token_entropies": [values[:length].tolist() for values, length in zip(entropies.values, lengths)],
        }
    )


def bits_per_byte(rows: Sequence[Row], collator: CausalCollator) -> Measure:
    return lambda model: held_out_code_length(model, rows, collator).bits_per_byte


@app.command(
    epilog="Example: python studies/theorem1/theorem1_text.py --data TRAIN.parquet --held-out VALIDATION.parquet "
    "--kind wikipedia --output runs/theorem1-text"
)
@one_line_errors()
def main(
    data: Annotated[Path, typer.Option(help="Parquet with the columns text and source: teacher and students.")],
    held_out: Annotated[Path, typer.Option(help="The same columns: first half validation, second half test.")],
    kind: Annotated[str, typer.Option(help="Only documents of this source.")],
    output: Annotated[Path, typer.Option(help="Folder for the teacher and the results of each run.")],
    tokenizer_folder: Annotated[Path, typer.Option("--tokenizer")] = Path("tokenizer"),
    records: Annotated[Path, typer.Option(help="Folder for table, figure and JSON.")] = Path("records"),
    documents: Annotated[int, typer.Option(min=1, help="Documents of a student.")] = 14,
    seeds: Annotated[int, typer.Option(min=2, help="Samples of documents, and initialisations.")] = 3,
    teacher_steps: Annotated[int, typer.Option(min=1, help="Of 8 rows of up to 256 tokens.")] = 1500,
) -> None:
    """Train the teacher, then every method on few documents; then write table, figure and JSON."""
    torch.set_num_threads(1)
    if documents * seeds > RESERVED_DOCUMENTS:
        raise ValueError(f"documents times seeds must be at most {RESERVED_DOCUMENTS}, not {documents * seeds}.")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    collator = collator_for(tokenizer)
    texts, unseen = texts_of_kind(data, kind), texts_of_kind(held_out, kind)
    order = np.random.default_rng(0).permutation(len(texts))
    validation_rows = rows_of(unseen[: len(unseen) // 2], tokenizer, at_most=VALIDATION_ROWS)
    test_rows = rows_of(unseen[len(unseen) // 2 :], tokenizer, at_most=TEST_ROWS)
    teacher_texts = [texts[i] for i in order[RESERVED_DOCUMENTS:]]
    teacher = trained_teacher(output / "teacher", teacher_texts, tokenizer, teacher_steps).eval()
    settings = {
        "context": CONTEXT,
        "width": WIDTH,
        "layers": LAYERS,
        **asdict(SCHEDULE),
        "teacher_steps": teacher_steps,
        "teacher, bits per byte": bits_per_byte(test_rows, collator)(teacher),
    }
    file = ResultFile(output / "results.jsonl", settings)
    methods = all_methods(["teacher"])
    keys = [Key(kind, documents, seed, m.loss, m.target) for seed in range(seeds) for m in methods]

    def run(key: Key) -> tuple[Curves, float]:
        chosen = order[key.seed * documents : (key.seed + 1) * documents]
        rows = rows_of([texts[i] for i in chosen], tokenizer)
        samples = {"train": rows[:TRAIN_ROWS], "validation": validation_rows, "test": test_rows}
        set_seed(key.seed)
        return train(
            llama(tokenizer),
            key,
            with_entropies(rows, teacher, collator),
            collator,
            SCHEDULE,
            {name: bits_per_byte(sample, collator) for name, sample in samples.items()},
        )

    for key in track([key for key in keys if key not in file.results], "runs", console=Console(stderr=True)):
        file.append(key, *run(key))
    experiment = Experiment(
        name="theorem1-text",
        title="Theorem 1 on real text",
        unit="bits per byte",
        settings=settings,
        results={key: file.results[key] for key in keys},
        size_of="documents",
    )
    write_record(records, experiment)


if __name__ == "__main__":
    app()
