"""What a bit of code saves: cross-entropy with the code and without it, by the code's size.

    python studies/speaking/curve.py --runs runs/speaking-curve --output studies/speaking

Trains `configs/speaking.yaml` once for each size of code, all with the same steps, and measures each on held-out
text. A code of P numbers costs 8 P bits in e4m3 for the tokens of its window; what it saves is the cross-entropy
without it less that with it. The slope between two sizes is the bits saved by the next bit of code. Trainings that
were stopped go on.
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from speaking import losses_and_agreement, regenerate, windows
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_eem.bits import nats_to_bits
from modeling_eem.evaluation.code_length import code_bits_of
from modeling_eem.report import Table, write_results
from modeling_eem.training import RunTrainer, prepare_run

ROOT = Path(__file__).parents[2]
DATA = [Path("asset:quickstart/validation.jsonl.gz")]


def trained(size: int, steps: int, folder: Path, settings: list[str]) -> Path:
    """The folder of a model whose code has so many numbers."""
    output = folder / f"code-{size}"
    given = {"bottleneck_size": size, "max_steps": steps, "save_steps": 200}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    run = prepare_run(
        ROOT / "configs" / "speaking.yaml",
        [*words, "--save_strategy", "steps", "--save_total_limit", "1", "--output_dir", str(output), *settings],
    )
    if not run.is_finished:
        trainer = RunTrainer(run)
        trainer.fit()
        trainer.finish()
    return output


def measured(folder: Path) -> dict[str, float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = model.config.max_position_embeddings
    rows_RT = windows(tokenizer, DATA, length)
    with torch.no_grad():
        codes_RP = torch.cat([model.encode(rows_BT) for rows_BT in rows_RT.split(256)])
    own, agreement = losses_and_agreement(model, rows_RT, codes_RP)
    none, _ = losses_and_agreement(model, rows_RT, None)
    generated_RT = regenerate(model, codes_RP, tokenizer.bos_token_id, length)
    return {
        "numbers": model.config.code_size,
        "code, bits a token": code_bits_of(model.config) / (length - 1),
        "with it, bits a token": nats_to_bits(own),
        "without it": nats_to_bits(none),
        "saved": nats_to_bits(none - own),
        "teacher forced": agreement,
        "free running": (generated_RT[:, 1:] == rows_RT[:, 1:]).float().mean().item(),
    }


def with_slopes(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """Adds the cross-entropy saved by each bit of code beyond the size before; the first is compared with no code."""
    code, loss = 0.0, points[0]["without it"]
    told = []
    for point in points:
        saved, spent = loss - point["with it, bits a token"], point["code, bits a token"] - code
        told.append({**point, "saved by the next bit": saved / spent})
        code, loss = point["code, bits a token"], point["with it, bits a token"]
    return told


def draw(points: list[dict[str, float]], path: Path) -> None:
    canvas = Figure(figsize=(6.4, 4), layout="constrained")
    axes = canvas.subplots()
    code = [point["code, bits a token"] for point in points]
    for name, style in (("with it, bits a token", "o-"), ("without it", "s--")):
        axes.plot(code, [point[name] for point in points], style, label=name.removesuffix(", bits a token"))
    axes.set(xlabel="bits of code a token (e4m3)", ylabel="bits of cross-entropy a token", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.set_xticks(code, [f"{bits:g}" for bits in code])
    axes.set_title("Held-out text decoded with its code and without")
    axes.legend()
    canvas.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the trained models")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments, settings = parser.parse_known_args()

    points = [measured(trained(size, arguments.steps, arguments.runs, settings)) for size in sorted(arguments.sizes)]
    points = with_slopes(points)
    formats = {name: ".0f" if name == "numbers" else ".3f" for name in points[0]}
    table = Table(
        columns=tuple(points[0]),
        rows=[tuple(point.values()) for point in points],
        title="What a bit of code saves",
        notes=(
            f"{arguments.steps:,} steps each, one seed; settings beside configs/speaking.yaml: {settings or 'none'}.",
        ),
        formats=formats,
    )
    print(table.to_markdown())
    content = {"steps": arguments.steps, "settings": settings, "points": json.loads(table.to_json())["rows"]}
    pictures = {"Cross-entropy by the code's size": "curve.png"}
    write_results(arguments.output, "curve", [table], content, pictures)
    draw(points, arguments.output / "curve.png")


if __name__ == "__main__":
    main()
