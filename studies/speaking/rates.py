"""Is there a rate at which a bit of code saves more than a bit? Codes of 1 to 64 numbers in 1 to 8 bits each.

    python studies/speaking/rates.py --runs runs/rates --output studies/speaking

Trains `configs/speaking.yaml` for each size of code and each scale of noise, all with the same steps, and a causal
mixer with the encoder's layers added to the decoder's, which costs the same. After training each number of a code
gets 2^b levels, fitted to codes of training text so that the squared error is least (Lloyd-Max); their frequencies
there are the prior. Measured on held-out text: the cross-entropy with the rounded code, and what the code costs in b
bits a number and under the prior. A code pays where both together are below the causal mixer's cross-entropy.
Trainings that were stopped go on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from speaking import BATCH, losses_and_agreement, windows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modeling_eem.bits import nats_to_bits
from modeling_eem.report import Table, write_results
from modeling_eem.training import RunTrainer, prepare_run

HERE = Path(__file__).parent
SPEAKING = HERE.parents[1] / "configs" / "speaking.yaml"
TRAINING, HELD_OUT = ([Path(f"asset:quickstart/{name}.jsonl.gz")] for name in ("train", "validation"))
FITTED_ROWS = 8192  # windows of training text whose codes settle levels and prior


def trained(config: Path, folder: Path, settings: list[str]) -> Path:
    """The folder of the trained model."""
    kept = ["--save_strategy", "steps", "--save_steps", "200", "--save_total_limit", "1"]
    run = prepare_run(config, [*kept, "--output_dir", str(folder), *settings])
    if not run.is_finished:
        trainer = RunTrainer(run)
        trainer.fit()
        trainer.write_finished_model()
    return folder


def lloyd_max(values_N: np.ndarray, num_levels: int) -> np.ndarray:
    """Levels `[L]`, rising, with the least squared error that alternating finds from the values' quantiles."""
    levels_L = np.quantile(values_N, (np.arange(num_levels) + 0.5) / num_levels)
    for _ in range(100):
        nearest_N = nearest(values_N, levels_L)
        counts_L = np.bincount(nearest_N, minlength=num_levels)
        sums_L = np.bincount(nearest_N, values_N, minlength=num_levels)
        levels_L = np.sort(np.where(counts_L > 0, sums_L / np.maximum(counts_L, 1), levels_L))
    return levels_L


def nearest(values_N: np.ndarray, levels_L: np.ndarray) -> np.ndarray:
    """The index of each value's nearest level."""
    return np.searchsorted((levels_L[1:] + levels_L[:-1]) / 2, values_N)


def rounded(fitted_RP: np.ndarray, codes_RP: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """Codes on levels of `bits` bits, and the mean bits of one code under the prior; both fitted to `fitted_RP`."""
    out_RP, cost = np.empty_like(codes_RP), 0.0
    for number in range(codes_RP.shape[1]):
        levels_L = lloyd_max(fitted_RP[:, number], 2**bits)
        counts_L = np.bincount(nearest(fitted_RP[:, number], levels_L), minlength=len(levels_L)) + 0.5
        chosen_R = nearest(codes_RP[:, number], levels_L)
        out_RP[:, number] = levels_L[chosen_R]
        cost += -np.log2(counts_L / counts_L.sum())[chosen_R].mean()
    return out_RP, cost


@torch.no_grad()
def codes_of(model: PreTrainedModel, rows_RT: Tensor) -> np.ndarray:
    return torch.cat([model.encode(rows_BT) for rows_BT in rows_RT.split(BATCH)]).float().numpy()


def measured(folder: Path, all_bits: list[int]) -> list[dict[str, Any]]:
    """A point for each number of bits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    model.config.code_dtype = None  # rounded here
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = model.config.max_position_embeddings
    rows_RT = windows(tokenizer, HELD_OUT, length)
    drawn_R = np.random.default_rng(0).permutation(len(training_RT := windows(tokenizer, TRAINING, length)))
    fitted_RP, codes_RP = codes_of(model, training_RT[drawn_R[:FITTED_ROWS]]), codes_of(model, rows_RT)
    none, _ = losses_and_agreement(model, rows_RT, None)
    points = []
    for bits in all_bits:
        levels_RP, prior_bits = rounded(fitted_RP, codes_RP, bits)
        loss, _ = losses_and_agreement(model, rows_RT, torch.from_numpy(levels_RP))
        points.append(
            {
                "numbers": model.config.code_size,
                "bits each": bits,
                "noise": model.config.noise_scale,
                "code": bits * model.config.code_size / (length - 1),
                "code by its prior": prior_bits / (length - 1),
                "with it": nats_to_bits(loss),
                "without it": nats_to_bits(none),
            }
        )
    return points


@torch.no_grad()
def causal_bits(folder: Path) -> float:
    """Bits a token of a model without a code, on the same windows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows_RT = windows(tokenizer, HELD_OUT, model.config.max_position_embeddings)
    losses = [model(rows_BT, labels=rows_BT).loss.item() * len(rows_BT) for rows_BT in rows_RT.split(BATCH)]
    return nats_to_bits(sum(losses) / len(rows_RT))


def draw(points: list[dict[str, Any]], causal: float, path: Path) -> None:
    canvas = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = canvas.subplots()
    for bits in sorted({point["bits each"] for point in points}):
        of_bits = sorted((p for p in points if p["bits each"] == bits), key=lambda p: p["code by its prior"])
        rates = [point["code by its prior"] for point in of_bits]
        label = f"{bits} bit{'s' * (bits > 1)} a number"
        axes.plot(rates, [point["with it"] for point in of_bits], "o-", markersize=3, label=label)
    rates = np.geomspace(min(point["code by its prior"] for point in points), causal, 200)
    axes.plot(rates, causal - rates, "k--", label="a bit of code saves a bit")
    axes.axhline(causal, color="k", linewidth=0.8, label="causal mixer, no code")
    axes.set(xlabel="bits of code a token, under its prior", ylabel="bits of cross-entropy a token", xscale="log")
    axes.set_ylim(0, None)
    axes.set_title("A code pays below the dashed line")
    axes.legend()
    canvas.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0625, 0.5], help="the better one is told")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the trained models")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments, settings = parser.parse_known_args()

    given = ["--max_steps", str(arguments.steps), *settings]
    causal = causal_bits(trained(HERE / "causal.yaml", arguments.runs / "causal", given))
    points = []
    for size in sorted(arguments.sizes):
        tried = []
        for noise in arguments.noise:
            words = ["--bottleneck_size", str(size), "--noise_scale", str(noise), *given]
            tried.append(measured(trained(SPEAKING, arguments.runs / f"{size}-{noise:g}", words), arguments.bits))
        points += [min(of_bits, key=lambda p: p["with it"] + p["code by its prior"]) for of_bits in zip(*tried)]
    for point in points:
        point["in all"] = point["with it"] + point["code by its prior"]
        point["saved by a bit"] = (causal - point["with it"]) / point["code by its prior"]
    counts = ("numbers", "bits each")
    formats = {name: ".4f" if name == "noise" else ".3f" for name in points[0] if name not in counts}
    table = Table(
        columns=tuple(points[0]),
        rows=[tuple(point.values()) for point in points],
        title="Codes by their rate: bits a token",
        notes=(
            f'The causal mixer of equal cost, without a code: {causal:.3f} bits a token. A code pays where "in all" '
            f'(cross-entropy with it, and its bits under the prior) is less; "saved by a bit" is then above 1.',
            f"{arguments.steps:,} steps each, one seed; of the noises {arguments.noise} the better one of each row; "
            f"settings beside configs/speaking.yaml: {settings or 'none'}.",
        ),
        formats=formats,
    )
    print(table.to_markdown())
    content = {
        "steps": arguments.steps,
        "settings": settings,
        "causal, bits a token": causal,
        "points": json.loads(table.to_json())["rows"],
    }
    write_results(arguments.output, "rates", [table], content, {"Cross-entropy by the rate of the code": "rates.png"})
    draw(points, causal, arguments.output / "rates.png")


if __name__ == "__main__":
    main()
