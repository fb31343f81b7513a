"""Does an EEM's loss fall faster than a causal model's of equal compute? Both, measured on the way through a training.

    python studies/over_training/over_training.py --eem runs/eem --causal runs/causal --prepared rows128 \
        --data general_validation.parquet math_validation.parquet --output studies/over_training

Reads every checkpoint of two runs of `eem train` (README.md) and scores it on held-out text in windows of n tokens: on
every fourth document on the way, on all of them at the end. Of the EEM also with the code of the next row, which tells
how much the code matters, and at the end with its code rounded. The bits of a code are counted packed, and under a
prior that was fitted to codes of training text, as the codec fits it. What is measured is kept beside the checkpoint:
the same command goes on where it was stopped. `--beside over-training.json`, an earlier record, in place of `--causal`
compares with the causal model of that record; it must rest on the same held-out text.
"""

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from over_training_report import Points, curve, write_record
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME

from modeling_eem.codec.code_prior import code_indices, code_tensors
from modeling_eem.data import CausalCollator
from modeling_eem.data.rows import Row
from modeling_eem.evaluation.code_length import code_bits_of, row_codes, row_nats
from modeling_eem.evaluation.held_out_text import held_out_rows
from modeling_eem.loading import load_model
from modeling_eem.models.configuration_eem import has_code

BATCH = 32
FORMATS = ("float8_e4m3fn", "int4")
FITTED_ROWS = 8192  # training rows whose codes settle the prior
ON_THE_WAY = 4  # every fourth document


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run: its folder, its step, and the real tokens it has been trained on."""

    folder: Path

    @property
    def step(self) -> int:
        return int(self.folder.name.rpartition("-")[2])

    @cached_property
    def tokens(self) -> int:
        return json.loads((self.folder / TRAINER_STATE_NAME).read_text())["num_input_tokens_seen"]


def checkpoints(run: Path) -> list[Checkpoint]:
    found = sorted(map(Checkpoint, run.glob("checkpoint-*")), key=lambda one: one.step)
    if len(found) < 3:
        raise SystemExit(f"{run} holds {len(found)} checkpoints: a curve needs three. Train it with its run file.")
    return found


def measured(
    checkpoint: Checkpoint, rows: list[Row], prepared: Path, formats: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The nats of each row; of an EEM also with another row's code, and with its code rounded, and bits of codes."""
    kept = checkpoint.folder / f"measured-{len(rows)}.npz"
    if not kept.exists():
        model = load_model(checkpoint.folder, dtype=torch.float32).eval()
        values = _measured(model, rows, prepared, formats)
        with kept.with_suffix(".part").open("wb") as file:
            np.savez(file, **values)
        kept.with_suffix(".part").rename(kept)
    with np.load(kept) as values:
        return dict(values)


def _measured(
    model: PreTrainedModel, rows: list[Row], prepared: Path, formats: tuple[str, ...]
) -> dict[str, np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    length = model.config.max_position_embeddings
    collator = CausalCollator(tokenizer.pad_token_id, model.config.vocab_size, length)
    if not has_code(model.config):
        return {"nats": np.array(row_nats(model, rows, collator, BATCH))}
    model.config.code_dtype = None
    codes_NP = row_codes(model, rows, collator, BATCH)
    values = {
        "nats": np.array(row_nats(model, rows, collator, BATCH, codes_NP)),
        "nats another": np.array(row_nats(model, rows, collator, BATCH, codes_NP.roll(1, 0))),
    }
    if not formats:
        return values
    training = load_from_disk(prepared / "train")
    drawn = np.random.default_rng(0).permutation(len(training))[:FITTED_ROWS].tolist()
    fitted_NP = row_codes(model, [training[index] for index in drawn], collator, BATCH)
    for name in formats:
        model.config.code_dtype = name
        values[f"nats {name}"] = np.array(row_nats(model, rows, collator, BATCH, codes_NP))
        values[f"packed {name}"] = np.full(len(rows), code_bits_of(model.config))
        values[f"prior {name}"] = prior_bits(fitted_NP, codes_NP, name)
    return values


def prior_bits(fitted_NP: Tensor, codes_NP: Tensor, code_dtype: str) -> np.ndarray:
    """The bits of each code under the codec's prior of its format, fitted to other codes."""
    tensors, _ = code_tensors(fitted_NP.numpy(), code_dtype)
    indices = code_indices(codes_NP.numpy(), code_dtype, tensors)
    priors = [*tensors["code.prior"], *tensors.get("code.scale_prior", ())]
    return sum(-np.log2(prior[place] / prior.sum()) for prior, place in zip(priors, indices.T, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eem", type=Path, required=True, help="folder of the EEM's run")
    rival = parser.add_mutually_exclusive_group(required=True)
    rival.add_argument("--causal", type=Path, help="folder of the causal model's run")
    rival.add_argument("--beside", type=Path, help="an earlier record, whose causal model is the rival")
    parser.add_argument("--prepared", type=Path, required=True, help="the rows they were trained on")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--until-step", type=int, default=2400, help="later points, of the decay, are not fitted")
    parser.add_argument("--name", default="over-training", help="the record's name")
    arguments = parser.parse_args()

    known = json.loads(arguments.beside.read_text()) if arguments.beside else None
    if known is not None and (names := [Path(path).name for path in known["data"]]) != [
        path.name for path in arguments.data
    ]:
        raise SystemExit(f"{arguments.beside} was measured on {' '.join(names)}: give them as --data, in this order.")
    runs = {"EEM": checkpoints(arguments.eem)}
    if arguments.causal is not None:
        runs["causal"] = checkpoints(arguments.causal)
    config = load_model(runs["EEM"][0].folder).config
    tokenizer = AutoTokenizer.from_pretrained(arguments.prepared / "tokenizer")
    length = config.max_position_embeddings
    rows = held_out_rows(arguments.data, tokenizer, config, "windows", length)
    quarter = [row for row in rows if row["document_ids"][0] % ON_THE_WAY == 0]
    points: dict[str, Points] = {name: [] for name in runs}
    for name, found in runs.items():
        for checkpoint in found:
            values = measured(checkpoint, quarter, arguments.prepared)
            points[name].append({"step": checkpoint.step, "tokens": checkpoint.tokens, "values": values})
            print(name, checkpoint.step, f"{values['nats'].sum() / tokens_of(quarter):.4f}", flush=True)
    last = {name: measured(found[-1], rows, arguments.prepared, FORMATS) for name, found in runs.items()}
    curves = {name: curve(points[name], quarter, length, config.code_size) for name in runs}
    if known is not None:
        curves["causal"] = known["points"]["causal"]
    write_record(arguments.output, arguments.name, arguments.data, curves, last, rows, length, arguments.until_step)


def tokens_of(rows: list[Row]) -> int:
    """Text tokens, without BOS."""
    return sum(len(row["input_ids"]) - 1 for row in rows)


if __name__ == "__main__":
    main()
