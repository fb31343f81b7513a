"""The record of `over_training.py`: points, fits, the last point in honest bits, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from modeling_eem.bits import code_offset_nats, window_length_bits
from modeling_eem.data.rows import Row
from modeling_eem.evaluation.curves import RunCurve
from modeling_eem.evaluation.intervals import ratio_difference
from modeling_eem.evaluation.straight_line import straight_line
from modeling_eem.report import Table, write_results
from modeling_eem.report.curve_plots import loss_curves

Points = list[dict[str, Any]]


def write_record(
    folder: Path,
    name: str,
    data: Sequence[Path],
    curves: dict[str, Points],
    last: dict[str, dict[str, np.ndarray]],
    rows: list[Row],
    length: int,
    until_step: int,
) -> None:
    """`name.md`, `name.json` and `name.png`; `last` was measured on `rows`, and lacks a rival of an earlier record."""
    steps = sorted(set.intersection(*({point["step"] for point in of_model} for of_model in curves.values())))
    of_step = {model: {point["step"]: point for point in of_model} for model, of_model in curves.items()}
    on_the_way = _way_table([(of_step["EEM"][step], of_step["causal"][step]) for step in steps], until_step)
    series = {
        "EEM": _series(curves["EEM"], "nats", until_step),
        "EEM, 4 bits a number": _series(curves["EEM"], "4 bits", until_step),
        "causal": _series(curves["causal"], "nats", until_step),
    }
    gap = [
        (of_step["EEM"][step]["tokens"], of_step["EEM"][step]["nats"] - of_step["causal"][step]["nats"])
        for step in steps
        if step <= until_step
    ]
    fits = _fit_table(series | {"EEM less causal": gap})
    bits, documents = _bits_table(last, rows, length)
    loss_curves(folder / f"{name}.png", series, _lines(series, length), {"EEM less causal": gap}, "nats a token")
    content = {
        "data": [str(path) for path in data],
        "until_step": until_step,
        "points": curves,
        "documents": documents,
    }
    caption = "Cross-entropy of both over training, and their difference"
    write_results(folder, name, [on_the_way, fits, bits], content, {caption: f"{name}.png"})
    print(on_the_way.to_markdown(), fits.to_markdown(), bits.to_markdown(), sep="\n")


def curve(points: Points, rows: list[Row], length: int, numbers: int) -> Points:
    """Means in nats a token at each point: over all windows, over full ones, and what a code adds."""
    tokens_N = np.array([len(row["input_ids"]) - 1 for row in rows])
    full_N = tokens_N == length - 1
    out = []
    for point in points:
        values = point["values"]
        mean = values["nats"].sum() / tokens_N.sum()
        measured = {
            "step": point["step"],
            "tokens": point["tokens"],
            "nats": mean,
            "full windows": values["nats"][full_N].sum() / tokens_N[full_N].sum(),
        }
        if "nats another" in values:
            measured["another's code"] = values["nats another"].sum() / tokens_N.sum()
            measured |= {f"{b} bits": mean + code_offset_nats(numbers, b, length) for b in (4, 8)}
        out.append(measured)
    return out


def _series(points: Points, key: str, until_step: int) -> list[tuple[float, float]]:
    return [(point["tokens"], point[key]) for point in points if point["step"] <= until_step]


def _lines(
    series: dict[str, list[tuple[float, float]]], length: int
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Both fits of each series at its own tokens."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {"linear": {}, "log-linear": {}}
    for name, points in series.items():
        for fit in RunCurve(name, length, points).fits:
            lines[fit.kind][name] = [(tokens, fit.loss(tokens)) for tokens, _ in points]
    return lines


def _way_table(pairs: list[tuple[dict[str, Any], dict[str, Any]]], until_step: int) -> Table:
    rows = []
    for eem, causal in pairs:
        rows.append(
            (
                f"{eem['step']:,}" + ("" if eem["step"] <= until_step else " (decay)"),
                eem["tokens"] / 1e6,
                eem["nats"],
                causal["nats"],
                eem["nats"] - causal["nats"],
                eem["full windows"] - causal["full windows"],
                eem["another's code"] - eem["nats"],
                eem["4 bits"] - causal["nats"],
                eem["8 bits"] - causal["nats"],
            )
        )
    columns = (
        "step",
        "million tokens",
        "EEM",
        "causal",
        "EEM less causal",
        "the same, full windows",
        "another's code costs",
        "less causal at 4 bits",
        "at 8 bits",
    )
    return Table(
        columns=columns,
        rows=rows,
        title="On the way: nats a token",
        notes=(
            "EEM: its loss alone, its code kept exact and not counted. At 4 and 8 bits: with the code's bits spread "
            'over a window (the paper\'s "normalized loss"). Every fourth held-out document.',
        ),
        formats={"million tokens": ".2f"} | dict.fromkeys(columns[2:], ".4f"),
    )


def _fit_table(series: dict[str, list[tuple[float, float]]]) -> Table:
    rows = []
    for name, points in series.items():
        tokens, losses = np.array(points).T
        for kind, x in {"linear": tokens / 1e6, "log-linear": np.log(tokens)}.items():
            line = straight_line(x, losses)
            half = student.ppf(0.975, len(x) - 2) * line.stderr
            interval = f"{line.slope - half:+.4f} … {line.slope + half:+.4f}"
            rows.append((name, kind, line.slope, interval, line.rvalue**2))
    return Table(
        columns=("series", "line", "slope", "95 %", "R²"),
        rows=rows,
        title="Straight lines through the points before the decay",
        notes=(
            "Slope: nats a token for a million tokens (linear), for e times the tokens (log-linear). The interval "
            "takes the points for independent; those of one training are not, so it is too narrow.",
        ),
        formats={"slope": "+.4f", "R²": ".3f"},
    )


def _bits_table(
    last: dict[str, dict[str, np.ndarray]], rows: list[Row], length: int
) -> tuple[Table, dict[str, list[float]]]:
    """The table, and what it was made of: bytes and bits of each document."""
    sides = np.array([window_length_bits(len(row["input_ids"]), length) for row in rows])
    documents, index = np.unique([row["document_ids"][0] for row in rows], return_inverse=True)

    def by_document(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, minlength=len(documents))

    bytes_D = by_document(np.array([row["num_bytes"] for row in rows], dtype=float))
    eem = last["EEM"]
    ways = {"causal": (last["causal"]["nats"], 0.0)} if "causal" in last else {}
    ways["EEM, code not counted"] = (eem["nats"], 0.0)
    for key in eem:
        for price in ("packed", "prior"):
            if key.startswith(f"{price} "):
                code_dtype = key.removeprefix(f"{price} ")
                ways[f"EEM, {code_dtype}, {price}"] = (eem[f"nats {code_dtype}"], eem[key])
    bits = {name: by_document(nats / np.log(2) + sides + code) for name, (nats, code) in ways.items()}
    table = []
    for name, bits_D in bits.items():
        code_bits = float(np.mean(ways[name][1]))
        less: tuple[float | None, str | None] = (None, None)
        if "causal" in bits and name != "causal":
            difference, interval = ratio_difference(bits_D, bytes_D, bits["causal"], bytes_D)
            less = (difference, interval.text("+.4f"))
        table.append((name, code_bits, bits_D.sum() / bytes_D.sum(), *less))
    shown = Table(
        columns=("what", "bits of a code", "bits a byte", "less causal", "95 % over documents"),
        rows=table,
        title="The last point in honest bits",
        notes=(
            f"{len(rows):,} windows of {len(documents):,} held-out documents, {int(bytes_D.sum()):,} bytes; "
            "cross-entropy with the rounded code, the code, and the lengths of short windows. Packed: numbers take "
            "the format's bits; prior: by the codec's prior, fitted to codes of training text.",
        ),
        formats={"bits of a code": ".1f", "bits a byte": ".4f", "less causal": "+.4f"},
    )
    return shown, {"bytes": bytes_D.tolist()} | {name: np.round(bits_D, 1).tolist() for name, bits_D in bits.items()}
