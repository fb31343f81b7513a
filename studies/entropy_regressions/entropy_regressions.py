"""Per-token entropies of real text by several models, and the lines between them, beside the published ones.

python studies/entropy_regressions/entropy_regressions.py --eem runs/eem-transformer --causal runs/causal-transformer \
    --teacher runs/smollm2 --data modeling_eem/assets/quickstart/validation.jsonl.gz --output runs/entropy-regressions

The models are those of `configs/cpu-small`, and as the teacher any larger causal model with a tokenizer of its own.
The values of each estimator are a file of OUTPUT, and the same command goes on where a kill left off. Published:
Badger & Neligeorge 2025, arXiv 2511.10618, whose "A against B" is read as A regressed on B.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from eem.console import one_line_errors
from modeling_eem.entropy import TokenEntropies
from modeling_eem.entropy.base import EntropyEstimator, pad_right
from modeling_eem.entropy.registry import build_estimator, load_models
from modeling_eem.entropy.statistics import Regression, regress, split_words
from modeling_eem.evaluation.correlation import words_table
from modeling_eem.evaluation.held_out_text import held_out_rows
from modeling_eem.files import write_atomically
from modeling_eem.report import Table, write_results
from modeling_eem.report.plots import COLOURS, label_axes, save_png

NAME = "entropy-regressions"


@dataclass(frozen=True)
class Pair:
    """y on x. Occlusions other than of the loss, and gradients, are mapped to [0, 1] row by row, as in training.

    Attributes:
        published: m, b and R² of the paper's small or medium models at n = 1024.
    """

    y: str
    x: str
    published: tuple[float, float, float] | None = None


PAIRS = (
    Pair("occlusion, l1", "occlusion, cosine", (0.957, 0.143, 0.420)),
    Pair("occlusion, l1", "causal", (0.006, 0.389, 0.011)),
    Pair("exact", "causal", (1.469, -1.188, 0.329)),
    Pair("exact", "teacher", (1.054, 0.110, 0.142)),
    Pair("causal", "teacher", (0.733, 0.840, 0.492)),
    Pair("occlusion, l1", "exact"),
    Pair("occlusion, loss", "exact"),
    Pair("gradient × input", "occlusion, l1"),
)

app = typer.Typer(add_completion=False)


def estimators(
    eem: Path, causal: Path, teacher: Path, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Callable[[], EntropyEstimator]]:
    """By name; a model is loaded when its estimator is made."""

    def make(method: str, model: Path, **options: Any) -> Callable[[], EntropyEstimator]:
        return lambda: build_estimator(method, load_models(method, [str(model)]), **options)

    return {
        "exact": make("exact", eem),
        **{f"occlusion, {metric}": make("occlusion", eem, metric=metric) for metric in ("l1", "cosine", "loss")},
        "gradient × input": make("gradient_input", eem),
        "causal": make("causal", causal),
        "teacher": make("teacher", teacher, tokenizer=tokenizer),
    }


def evenly(rows: list[Any], count: int) -> list[Any]:
    """`count` of them, from the first to the last at equal distances; all if there are no more."""
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Keep what the values are made of; a ValueError where values are kept that were made of something else."""
    if not file.exists():
        write_atomically(file, json.dumps(settings, indent=1) + "\n")
    elif json.loads(file.read_text()) != settings:
        raise ValueError(f"{file.parent} holds values of other models or rows: choose another --output.")


def estimate(
    file: Path,
    make: Callable[[], EntropyEstimator],
    ids_RT: Tensor,
    mask_RT: Tensor,
    tokenizer: PreTrainedTokenizerBase,
) -> TokenEntropies:
    """An estimator's values of the rows, from its file if it is there."""
    if not file.exists():
        content = io.BytesIO()
        torch.save(vars(make()(input_ids=ids_RT, attention_mask=mask_RT, tokenizer=tokenizer)), content)
        write_atomically(file, content.getvalue())
    return TokenEntropies(**torch.load(file))


def comparable(result: TokenEntropies) -> TokenEntropies:
    """Nats as they are; what is no entropy mapped to [0, 1]."""
    return result if result.unit == "nats" else dataclasses.replace(result, values=result.normalized())


def regressions(results: Mapping[str, TokenEntropies]) -> dict[Pair, Regression]:
    return {pair: regress(comparable(results[pair.x]), comparable(results[pair.y])) for pair in PAIRS}


def regressions_table(fits: Mapping[Pair, Regression]) -> Table:
    """A line a pair, the published values beside ours."""
    rows = []
    for pair, fit in fits.items():
        ours = (f"{value.value:.3f} ({value.low:.3f} … {value.high:.3f})" for value in (fit.slope, fit.intercept))
        r_squared = f"{fit.r_squared.value:.3f} ({fit.r_squared.low:.3f} … {fit.r_squared.high:.3f})"
        published = "–" if pair.published is None else "{:.3f}, {:.3f}, {:.3f}".format(*pair.published)
        rows.append((pair.y, pair.x, *ours, r_squared, fit.pearson.value, fit.tokens, published))
    return Table(
        columns=("y", "x", "m", "b", "R²", "Pearson", "tokens", "published m, b, R²"),
        rows=rows,
        title="y = m x + b between per-token entropies",
        notes=[
            "Nats; occlusions of logits and gradient × input are mapped to [0, 1] row by row.",
            "In brackets 95 % intervals: 1,000 times as many rows drawn with replacement.",
            "Published: other models, other text, n = 1024, the attention mask ignored; the teacher is Llama-3.2-1B.",
        ],
    )


def estimates_table(results: Mapping[str, TokenEntropies]) -> Table:
    """Mean, spread and total of each estimate in nats."""
    in_nats = {name: result for name, result in results.items() if result.unit == "nats"}
    num_bytes = sum(len(text) for text in next(iter(results.values())).texts)
    rows = []
    for name, result in in_nats.items():
        values = result.values[~result.values.isnan()]
        bits_a_byte = float(result.bits().nansum() / num_bytes)
        rows.append(
            (
                name,
                len(values),
                float(values.mean()),
                float(values.std()),
                float((values < 0).double().mean()),
                bits_a_byte,
            )
        )
    return Table(
        columns=("estimate", "tokens", "mean nats", "standard deviation", "below 0", "bits a byte"),
        rows=rows,
        formats={"below 0": ".1%"},
        title="Estimates in nats",
        notes=[
            "Bits a byte: the sum over the bytes of the rows; of an entropy estimation model without its code's bits."
        ],
    )


def draw(path: Path, results: Mapping[str, TokenEntropies], fits: Mapping[Pair, Regression]) -> Path:
    """A panel a pair: the tokens, and the line through them."""
    figure = Figure(figsize=(14, 7), dpi=130, layout="constrained")
    for axes, (pair, fit) in zip(figure.subplots(2, 4).flat, fits.items(), strict=True):
        x, y = (comparable(results[name]).values for name in (pair.x, pair.y))
        both = ~(x.isnan() | y.isnan())
        x, y = x[both].numpy(), y[both].numpy()
        axes.plot(x, y, ".", color=COLOURS[0], alpha=0.25, markersize=3, markeredgewidth=0)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, fit.slope.value * ends + fit.intercept.value, color=COLOURS[1], linewidth=2)
        axes.set_ylim(np.quantile(y, 0.001), np.quantile(y, 0.999))
        label_axes(axes, _label(results, pair.x), _label(results, pair.y), f"R² {fit.r_squared.value:.3f}")
    return save_png(path, figure)


def _label(results: Mapping[str, TokenEntropies], name: str) -> str:
    return f"{name}, {'nats' if results[name].unit == 'nats' else 'mapped to [0, 1]'}"


EXAMPLE = (
    "python studies/entropy_regressions/entropy_regressions.py --eem runs/eem-transformer "
    "--causal runs/causal-transformer --teacher runs/smollm2 "
    "--data modeling_eem/assets/quickstart/validation.jsonl.gz --output runs/entropy-regressions"
)


@app.command(epilog=f"Example: {EXAMPLE}")
@one_line_errors()
def main(
    eem: Annotated[Path, typer.Option(help="Folder of an entropy estimation model, with its tokenizer.")],
    causal: Annotated[Path, typer.Option(help="Folder of a causal model with the same tokenizer.")],
    teacher: Annotated[Path, typer.Option(help="Folder of a larger causal model with any tokenizer.")],
    data: Annotated[Path, typer.Option(help="Held-out text: .txt, .jsonl or .parquet.")],
    output: Annotated[Path, typer.Option(help="Folder for the values of each estimator.")],
    records: Annotated[Path, typer.Option(help="Folder for tables, figure and JSON.")] = Path(__file__).parent,
    windows: Annotated[int, typer.Option(min=2, help="How many, taken evenly from the text.")] = 16,
) -> None:
    """Estimate the same tokens in every way; then write regressions, a figure and JSON."""
    tokenizer = AutoTokenizer.from_pretrained(eem)
    makers = estimators(eem, causal, teacher, tokenizer)
    config, *_ = (AutoConfig.from_pretrained(model) for model in (eem, causal, teacher))  # all there, before the work
    rows = held_out_rows([data], tokenizer, config, "windows", config.max_position_embeddings)
    ids_RT, mask_RT = pad_right([torch.tensor(row["input_ids"]) for row in evenly(rows, windows)])
    paths = {"eem": str(eem), "causal": str(causal), "teacher": str(teacher), "data": str(data)}
    check_settings(output / "settings.json", {**paths, "windows": windows})
    results = {
        name: estimate(output / f"{name}.pt", make, ids_RT, mask_RT.bool(), tokenizer)
        for name, make in track(makers.items(), "estimators", console=Console(stderr=True))
    }
    fits = regressions(results)
    words = {name: split_words([result]) for name, result in results.items() if result.unit == "nats"}
    figure = draw(records / f"{NAME}.png", results, fits)
    content = {
        "rows": len(ids_RT),
        "regressions": [{"y": pair.y, "x": pair.x, **asdict(fit)} for pair, fit in fits.items()],
        "words": {name: asdict(split) for name, split in words.items()},
    }
    tables = [regressions_table(fits), estimates_table(results), words_table(words, dict.fromkeys(words, "nats"))]
    write_results(records, NAME, tables, content, {"Every pair, token by token": figure.name})
    Console().print(*tables, sep="\n")


if __name__ == "__main__":
    app()
