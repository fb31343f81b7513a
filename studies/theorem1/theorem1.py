"""Theorem 1 on sources of known entropy: does training towards the entropy generalize better than early stopping?

python studies/theorem1/theorem1.py --output runs/theorem1

Every token loss, with the true surprisal and with the true conditional entropy as e, trains the same tiny Llama on
small samples of three sources whose probabilities are known. Runs are appended to OUTPUT/results.jsonl as they end,
and the same command goes on where a kill left off. Values are nats a token above the truth:

* test: the mean over held-out prefixes of KL(true ‖ model), which is the expected cross-entropy minus the entropy;
* training and validation: the sample's cross-entropy minus its own true surprisal.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from theorem1_report import Experiment, write_record
from theorem1_runs import Curves, Key, Measure, ResultFile, Schedule, all_methods, tiny_llama, train
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from eem.console import Command, one_line_errors
from modeling_eem.data import CausalCollator, CopySource, HiddenMarkovSource, MarkovSource, Source

SYMBOLS, LENGTH = 10, 48
BOS, PAD = SYMBOLS, SYMBOLS + 1
SOURCES: dict[str, Callable[[], Source]] = {
    "order-2 Markov": partial(MarkovSource.random, SYMBOLS, order=2, concentration=0.3, seed=0),
    "hidden Markov": partial(HiddenMarkovSource.random, SYMBOLS, num_states=8, concentration=0.15, seed=0),
    "copy with noise": partial(CopySource, SYMBOLS, half_length=LENGTH // 2, noise=0.3),
}
TARGETS = {
    "surprisal": lambda source, ids_BT: -source.log_probs(ids_BT),
    "entropy": lambda source, ids_BT: source.conditional_entropies(ids_BT),
}
WIDTH, LAYERS = 32, 2
HELD_OUT_ROWS = 64
SCHEDULE = Schedule(
    steps=200, batch_size=16, learning_rate=1e-2, points=10, entropy_threshold=0.75 * math.log(SYMBOLS)
)
LONGER = {360: replace(SCHEDULE, steps=600, points=30)}  # by rows: 200 steps do not over-fit so many

app = typer.Typer(add_completion=False)


def run(source: Source, key: Key, schedule: Schedule) -> tuple[Curves, float]:
    """One cell of the experiment: data and initialisation follow from the seed, alike for all methods."""
    generator = torch.Generator().manual_seed(key.seed)
    train_BT, validation_BT, test_BT = (
        source.sample(rows, LENGTH, generator) for rows in (key.size, HELD_OUT_ROWS, HELD_OUT_ROWS)
    )
    rows = {"input_ids": _with_bos(train_BT, BOS).tolist()}
    if key.target:
        rows["token_entropies"] = _with_bos(TARGETS[key.target](source, train_BT), float("nan")).tolist()
    set_seed(key.seed)
    return train(
        tiny_llama(WIDTH, LAYERS, LENGTH + 1, SYMBOLS + 2, bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD),
        key,
        Dataset.from_dict(rows),
        CausalCollator(PAD, SYMBOLS + 2, LENGTH + 1),
        schedule,
        {
            "train": excess_loss(source, train_BT[:HELD_OUT_ROWS]),
            "validation": excess_loss(source, validation_BT),
            "test": divergence(source, test_BT),
        },
    )


def _with_bos(values_BT: Tensor, first: float) -> Tensor:
    return F.pad(values_BT, (1, 0), value=first)


@torch.no_grad()
def _log_probs(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """The model's log-probability of every symbol at every position, `[b, t, vocabulary]`."""
    return model(input_ids=_with_bos(ids_BT, BOS)[:, :-1], use_cache=False).logits.double().log_softmax(-1)


def excess_loss(source: Source, ids_BT: Tensor) -> Measure:
    truth = -source.log_probs(ids_BT).mean()

    def measure(model: PreTrainedModel) -> float:
        losses_BT = -_log_probs(model, ids_BT).gather(2, ids_BT[..., None])
        return float(losses_BT.mean() - truth)

    return measure


def divergence(source: Source, ids_BT: Tensor) -> Measure:
    probs_BTS = source.next_probs(ids_BT)
    truth = source.conditional_entropies(ids_BT).mean()

    def measure(model: PreTrainedModel) -> float:
        losses_BT = -(probs_BTS * _log_probs(model, ids_BT)[..., :SYMBOLS]).sum(-1)
        return float(losses_BT.mean() - truth)

    return measure


@app.command(cls=Command, epilog="Example: python studies/theorem1/theorem1.py --output runs/theorem1")
@one_line_errors()
def main(
    output: Annotated[Path, typer.Option(help="Folder for the results of each run.")],
    records: Annotated[Path, typer.Option(help="Folder for table, figures and JSON.")] = Path(__file__).parent,
    sizes: Annotated[list[int], typer.Option(help="Rows in the training set.")] = [120, 40, 360],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=2, help="Samples and initialisations.")] = 5,
) -> None:
    """Train every method on every source, size and seed; then write table, figures and JSON."""
    torch.set_num_threads(1)
    methods = all_methods(list(TARGETS))
    settings = {"symbols": SYMBOLS, "length": LENGTH, "width": WIDTH, "layers": LAYERS, **asdict(SCHEDULE)}
    settings |= {
        f"{name}, {size} rows": getattr(schedule, name)
        for size, schedule in LONGER.items()
        for name in ("steps", "points")
    }
    file = ResultFile(output / "results.jsonl", settings)
    keys = [
        Key(source, size, seed, method.loss, method.target)
        for size in sizes
        for seed in range(seeds)
        for source in SOURCES
        for method in methods
    ]
    sources = {name: make() for name, make in SOURCES.items()}
    for key in track([key for key in keys if key not in file.results], "runs", console=Console(stderr=True)):
        file.append(key, *run(sources[key.source], key, LONGER.get(key.size, SCHEDULE)))
    experiment = Experiment(
        name="theorem1",
        title="Theorem 1 on sources of known entropy",
        unit="nats a token above the entropy",
        settings=settings,
        results={key: file.results[key] for key in keys},
        log_scale=True,
    )
    write_record(records, experiment)


if __name__ == "__main__":
    app()
