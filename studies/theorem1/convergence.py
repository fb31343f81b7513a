"""Do entropy weights filter the noise of gradients, and so speed up training? On sources of known probabilities.

python studies/theorem1/convergence.py --output runs/convergence --records studies/theorem1

The tiny Llama of `theorem1.py` trains on fresh rows only, so it cannot over-fit: what differs is how fast it learns.

* Steps: every loss, two learning rates, five seeds. Held-out values are nats a token above the truth, as there.
* Noise: at four points of a training with cross-entropy, the gradients g of single rows under each loss, at the same
  weights. With G their mean, the gradient noise scale is tr Cov(g) / |G|² (McCandlish et al. 2018, arXiv 1812.06162):
  the batch at which noise and signal are equal. A loss can have little noise and point elsewhere, so each batch's
  gradient is also compared (cosine) with that of the expected cross-entropy, which the source gives exactly.

Runs are appended to OUTPUT as they end; the same command goes on where a kill left off. Budget: a core for an hour.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from convergence_report import Noise, write_record
from datasets import Dataset
from rich.console import Console
from rich.progress import track
from theorem1 import (
    BOS,
    HELD_OUT_ROWS,
    LAYERS,
    LENGTH,
    PAD,
    SCHEDULE,
    SOURCES,
    SYMBOLS,
    TARGETS,
    WIDTH,
    run,
)
from theorem1_runs import CONTROL, Key, Method, ResultFile, all_methods, tiny_llama, train
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from eem.console import Command, one_line_errors
from modeling_eem.data import CausalCollator, Source
from modeling_eem.entropy.normalization import min_max_normalize
from modeling_eem.files import write_atomically
from modeling_eem.training import TOKEN_LOSSES, TokenLossOptions
from modeling_eem.training.token_losses import Tokens

RATES = (1e-2, 3e-3)
STEPS, POINTS = 400, 40
NOISE_SEEDS, NOISE_POINTS = 3, 4
ROWS = 256  # whose gradients are taken one by one
TRUTH_ROWS = 2048  # that the expected cross-entropy's gradient is formed on
BATCHES = 64  # of batch_size rows, drawn from ROWS

app = typer.Typer(add_completion=False)


def noise_measures(
    model: PreTrainedModel, source: Source, methods: Sequence[Method], seed: int, options: TokenLossOptions
) -> list[dict[str, float]]:
    """Of each method, at these weights: `noise_scale` in tokens, and cosines with the expected loss's gradient of the
    mean of all rows (`cosine`) and of a batch (`batch_cosine`, a mean over batches)."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    rows_BT, truth_BT = (source.sample(rows, LENGTH, generator) for rows in (ROWS, TRUTH_ROWS))
    truth_P = _gradient(model, expected_loss(model, source, truth_BT))
    rows_MBP = row_gradients(model, source, rows_BT, methods, options)
    drawn = torch.stack([torch.randperm(ROWS, generator=generator)[: SCHEDULE.batch_size] for _ in range(BATCHES)])
    return [
        {
            "noise_scale": LENGTH * noise_scale(rows_BP),
            "cosine": _cosine(rows_BP.mean(0), truth_P),
            "batch_cosine": sum(_cosine(rows_BP[chosen].mean(0), truth_P) for chosen in drawn) / BATCHES,
        }
        for rows_BP in rows_MBP
    ]


def noise_scale(gradients_BP: Tensor) -> float:
    """tr Cov(g) / |G|² of rows' gradients, in rows, both estimated without bias; infinite if no signal is seen."""
    rows = len(gradients_BP)
    mean_square, square_of_mean = gradients_BP.square().sum(1).mean(), gradients_BP.mean(0).square().sum()
    signal = (rows * square_of_mean - mean_square) / (rows - 1)
    noise = (mean_square - square_of_mean) * rows / (rows - 1)
    return float(noise / signal) if signal > 0 else float("inf")


def row_gradients(
    model: PreTrainedModel, source: Source, rows_BT: Tensor, methods: Sequence[Method], options: TokenLossOptions
) -> Tensor:
    """The gradient of each row's mean token loss under each method, `[methods, rows, parameters]`."""
    entropies = {name: target(source, rows_BT).float() for name, target in TARGETS.items()}
    number = sum(parameter.numel() for parameter in model.parameters())
    out_MBP = torch.empty(len(methods), len(rows_BT), number)
    segments_T = torch.zeros(LENGTH, dtype=torch.long)
    for index, ids_T in enumerate(rows_BT):
        log_probs_TV = log_probs(model, ids_T[None])[0]
        losses_T = -log_probs_TV.gather(1, ids_T[:, None])[:, 0]
        predictive_T = -(log_probs_TV.exp() * log_probs_TV).sum(1).detach()
        for place, method in enumerate(methods):
            entropies_T = entropies[method.target][index] if method.target else None
            tokens = Tokens(
                losses_T,
                entropies_T,
                None if entropies_T is None else min_max_normalize(entropies_T, segments_T),
                predictive_T,
                segments_T,
            )
            loss = TOKEN_LOSSES[method.loss].function(tokens, options).mean()
            out_MBP[place, index] = _gradient(model, loss, keep=place + 1 < len(methods))
    return out_MBP


def expected_loss(model: PreTrainedModel, source: Source, ids_BT: Tensor) -> Tensor:
    """The mean over prefixes of the cross-entropy that the source's own next symbols would give."""
    probs_BTS = source.next_probs(ids_BT).float()
    return -(probs_BTS * log_probs(model, ids_BT)[..., :SYMBOLS]).sum(-1).mean()


def log_probs(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    given_BT = F.pad(ids_BT, (1, 0), value=BOS)[:, :-1]
    return model(input_ids=given_BT, use_cache=False).logits.float().log_softmax(-1)


def _gradient(model: PreTrainedModel, loss: Tensor, keep: bool = False) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, [*model.parameters()], retain_graph=keep)])


def _cosine(one_P: Tensor, other_P: Tensor) -> float:
    return float(F.cosine_similarity(one_P, other_P, dim=0))


def noise_along(source: Source, methods: Sequence[Method], seed: int, options: TokenLossOptions) -> Noise:
    """`noise_measures` at each point of a training with cross-entropy."""
    found: Noise = []

    def measure(model: PreTrainedModel) -> float:
        with torch.enable_grad():
            found.append(noise_measures(model, source, methods, seed, options))
        return 0.0

    schedule = replace(SCHEDULE, steps=STEPS, points=NOISE_POINTS)
    ids_BT = source.sample(STEPS * schedule.batch_size, LENGTH, torch.Generator().manual_seed(seed))
    set_seed(seed)
    train(
        tiny_llama(WIDTH, LAYERS, LENGTH + 1, SYMBOLS + 2, bos_token_id=BOS, eos_token_id=BOS, pad_token_id=PAD),
        Key("", 0, seed, CONTROL.loss, CONTROL.target),
        Dataset.from_dict({"input_ids": F.pad(ids_BT, (1, 0), value=BOS).tolist()}),
        CausalCollator(PAD, SYMBOLS + 2, LENGTH + 1),
        schedule,
        {"train": measure, "validation": _nothing, "test": _nothing},
    )
    return found


def _nothing(model: PreTrainedModel) -> float:
    return 0.0


def noise_of_all(folder: Path, seeds: int, settings: Mapping[str, object]) -> dict[tuple[str, int], Noise]:
    """By source and seed; each is kept in a file of its own.

    Raises:
        ValueError: for a file of other settings.
    """
    found: dict[tuple[str, int], Noise] = {}
    methods, options = all_methods(list(TARGETS)), TokenLossOptions(entropy_threshold=SCHEDULE.entropy_threshold)
    keys = [(name, seed) for seed in range(seeds) for name in SOURCES]
    for name, seed in track(keys, "noise", console=Console(stderr=True)):
        file = folder / f"noise-{name}-{seed}.json"
        if not file.exists():
            noise = noise_along(SOURCES[name](), methods, seed, options)
            write_atomically(file, json.dumps({"settings": settings, "noise": noise}))
        kept = json.loads(file.read_text())
        if kept["settings"] != settings:
            raise ValueError(f"{file} was made with other settings: choose another --output.")
        found[name, seed] = kept["noise"]
    return found


@app.command(cls=Command, epilog="Example: python studies/theorem1/convergence.py --output runs/convergence")
@one_line_errors()
def main(
    output: Annotated[Path, typer.Option(help="Folder for the results of each run.")],
    records: Annotated[Path, typer.Option(help="Folder for table, figure and JSON.")] = Path("records"),
    seeds: Annotated[int, typer.Option(min=2, help="Samples and initialisations.")] = 5,
) -> None:
    """Train every loss on fresh rows, measure the noise of its gradients; then write tables, a figure and JSON."""
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    methods = all_methods(list(TARGETS))
    schedule = replace(SCHEDULE, steps=STEPS, points=POINTS)
    settings = {"symbols": SYMBOLS, "length": LENGTH, "width": WIDTH, "layers": LAYERS, **asdict(schedule)}
    settings["held_out_rows"] = HELD_OUT_ROWS
    sources = {name: make() for name, make in SOURCES.items()}
    files = {rate: ResultFile(output / f"rate-{rate:g}.jsonl", settings | {"learning_rate": rate}) for rate in RATES}
    wanted = [
        (rate, Key(source, STEPS * schedule.batch_size, seed, method.loss, method.target))
        for seed in range(seeds)
        for rate in RATES
        for source in SOURCES
        for method in methods
    ]
    missing = [(rate, key) for rate, key in wanted if key not in files[rate].results]
    for rate, key in track(missing, "runs", console=Console(stderr=True)):
        files[rate].append(key, *run(sources[key.source], key, replace(schedule, learning_rate=rate)))
    curves = {(rate, key): files[rate].results[key] for rate, key in wanted}
    noise_settings = {
        "rows": ROWS,
        "truth_rows": TRUTH_ROWS,
        "batches": BATCHES,
        "points": NOISE_POINTS,
        "steps": STEPS,
    }
    noise = noise_of_all(output, NOISE_SEEDS, noise_settings)
    write_record(records, curves, noise, methods, settings | {"learning_rate": list(RATES)} | noise_settings)


if __name__ == "__main__":
    app()
