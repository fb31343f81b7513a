"""Training speed through `TokenWeightedTrainer`: tokens a second, and the share of the machine's matrix-product peak.

python benchmarks/training_throughput.py --output records

A causal masked mixer, a Llama of as many parameters and an entropy estimation model, with the same vocabulary, context
and rows a step. A step is everything from one optimizer step's end to the next one's: data, forward, backward, AdamW.
Useful operations are `training_flops`, which counts what a row's forward and backward run. The peak is that of a
float32 matrix product, timed right before and after each model's steps.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from paired import matmul_peak
from rich.console import Console
from rich.progress import track
from training_cases import LAYERS, LENGTH, ROWS, VOCABULARY, WIDTH, llama_of, mixer, random_rows
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from eem.console import one_line_errors
from modeling_eem import EEMConfig, EEMForCausalLM
from modeling_eem.data import CausalCollator
from modeling_eem.report import Table
from modeling_eem.report.results import write_results
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments, training_flops

WARM_UP_STEPS = 2

app = typer.Typer(add_completion=False)


class StepTimes(TrainerCallback):
    """When each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def eem() -> EEMForCausalLM:
    """A mixer EEM of the benchmark's width: its encoder a quarter as wide, its code introduced as a token."""
    backbone = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "max_position_embeddings": LENGTH}
    return EEMForCausalLM(
        EEMConfig(
            encoder_config={**backbone, "hidden_size": WIDTH // 4},
            decoder_config={**backbone, "hidden_size": WIDTH, "max_position_embeddings": LENGTH + 1},
            bottleneck_size=64,
            memory_introduction="token",
        )
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "causal mixer": mixer,
    "Llama": lambda: llama_of(mixer().num_parameters()),
    "EEM": eem,
}


def step_seconds(model: PreTrainedModel, steps: int) -> list[float]:
    """Seconds of each of `steps` optimizer steps on random rows, after a warm-up."""
    times = StepTimes()
    num_steps = WARM_UP_STEPS + steps
    with TemporaryDirectory() as folder:
        trainer = TokenWeightedTrainer(
            model=model,
            args=TokenWeightedTrainingArguments(
                output_dir=folder,
                max_steps=num_steps,
                per_device_train_batch_size=ROWS,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            data_collator=CausalCollator(pad_token_id=0, vocab_size=VOCABULARY, max_length=LENGTH),
            train_dataset=Dataset.from_dict({"input_ids": random_rows(rows=ROWS * num_steps).tolist()}),
            callbacks=[times],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [after - before for before, after in zip(times.ends[WARM_UP_STEPS - 1 :], times.ends[WARM_UP_STEPS:])]


@app.command(epilog="Example: python benchmarks/training_throughput.py --steps 10 --output records")
@one_line_errors()
def main(
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each model.")] = 10,
    output: Annotated[Path | None, typer.Option(help="Folder for training-throughput.md and .json.")] = None,
) -> None:
    """Train each model for a few steps and time them."""
    measured = {}
    for name, make in track(MODELS.items(), "models", console=Console(stderr=True)):
        model = make()
        flops = ROWS * training_flops(model, LENGTH)
        before = matmul_peak()
        seconds = step_seconds(model, steps)
        measured[name] = {
            "parameters": model.num_parameters(),
            "flops_a_step": flops,
            "seconds": seconds,
            "peaks": [before, matmul_peak()],
        }
    rows = []
    for name, its in measured.items():
        seconds = statistics.median(its["seconds"])
        share = its["flops_a_step"] / seconds / statistics.mean(its["peaks"])
        speed = ROWS * LENGTH / seconds
        rows.append((name, its["parameters"] / 1e6, its["flops_a_step"] / ROWS / 1e9, speed, 100 * share))
    table = Table(
        columns=("model", "M params", "GFLOPs a row", "tokens/s", "% of peak"),
        rows=rows,
        title=f"Training through TokenWeightedTrainer: {ROWS} rows of {LENGTH} tokens a step",
        notes=[
            f"Width {WIDTH}, {LAYERS} layers, vocabulary {VOCABULARY:,}, float32, {torch.get_num_threads()} threads; "
            f"the median of {steps} steps. The EEM's tokens pass its encoder and its decoder.",
            "Peak: float32 matrix product, right before and after each model: "
            + "; ".join(
                f"{name} {its['peaks'][0] / 1e9:.0f}, {its['peaks'][1] / 1e9:.0f}" for name, its in measured.items()
            )
            + " GFLOP/s.",
        ],
        formats={"M params": ".2f", "GFLOPs a row": ".1f", "tokens/s": ",.0f", "% of peak": ".0f"},
    )
    Console().print(table)
    if output is not None:
        write_results(output, "training-throughput", [table], {"models": measured})


if __name__ == "__main__":
    app()
