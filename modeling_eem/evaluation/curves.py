"""Loss against training tokens: runs read back, compared and fitted.

Losses are normalized: held-out cross-entropy plus the code's bits spread over n tokens, in nats a token. Runs with and
without codes are then comparable. Source: Badger & Neligeorge 2025, training curves (causal losses fall with the
logarithm of the tokens, entropy estimation models' nearly linearly).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer import TRAINER_STATE_NAME

from modeling_eem.bits import code_offset_nats
from modeling_eem.evaluation.straight_line import straight_line
from modeling_eem.files import read_record
from modeling_eem.report import Table

_RESULTS, _LOSS = "results.json", "eval_cross_entropy"
_LEAST_POINTS = 3


@dataclass(frozen=True)
class Fit:
    """A straight least-squares line through a run's losses.

    Attributes:
        kind: "linear" in the tokens, "log-linear" in their natural logarithm.
        intercept, slope: nats a token, and nats a token for each token or e-fold of tokens.
        r_squared: the share of the losses' variance that the line explains.
    """

    kind: str
    intercept: float
    slope: float
    r_squared: float

    def loss(self, tokens: float) -> float:
        return self.intercept + self.slope * (tokens if self.kind == "linear" else math.log(tokens))

    def tokens(self, loss: float) -> float:
        """The tokens at which the line has this loss; infinite if it falls too slowly, NaN if it never does."""
        if not self.slope < 0:
            return math.nan
        x = (loss - self.intercept) / self.slope
        if self.kind == "linear":
            return x if x >= 0 else math.nan
        return math.exp(x) if x < math.log(np.finfo(float).max) else math.inf


@dataclass(frozen=True)
class RunCurve:
    """A run's losses on held-out text during training.

    Attributes:
        name: the name of the run's folder.
        max_length: n, tokens in a row; a sample is a row.
        points: (tokens seen, normalized loss in nats a token), by rising tokens.
    """

    name: str
    max_length: int
    points: Sequence[tuple[float, float]]

    @cached_property
    def fits(self) -> list[Fit]:
        """A line in the tokens, and one in their logarithm."""
        tokens, losses = np.array(self.points).T
        fits = []
        for kind, x in {"linear": tokens, "log-linear": np.log(tokens)}.items():
            line = straight_line(x, losses)
            fits.append(Fit(kind, float(line.intercept), float(line.slope), float(line.rvalue) ** 2))
        return fits

    def tokens_to_reach(self, loss: float) -> float:
        """Tokens after which the loss was first this low, on straight lines between measurements; NaN if never.

        If the run's first loss is lower already, the tokens of the first measurement.
        """
        before_tokens, before_loss = self.points[0]
        for tokens, value in self.points:
            if value <= loss:
                share = 1.0 if value == before_loss else (before_loss - loss) / (before_loss - value)
                return before_tokens + max(share, 0.0) * (tokens - before_tokens)
            before_tokens, before_loss = tokens, value
        return math.nan

    def less(self, other: "RunCurve") -> list[tuple[float, float]]:
        """(tokens, this loss minus the other's) at the tokens of both, in the range that both were measured over.

        Raises:
            ValueError: if the runs have no tokens in common.
        """
        (own_tokens, own), (other_tokens, others) = np.array(self.points).T, np.array(other.points).T
        low, high = max(own_tokens[0], other_tokens[0]), min(own_tokens[-1], other_tokens[-1])
        tokens = np.union1d(own_tokens, other_tokens)
        tokens = tokens[(tokens >= low) & (tokens <= high)]
        if not len(tokens):
            raise ValueError(
                f"{self.name} and {other.name} were measured at different tokens: train the shorter run longer."
            )
        differences = np.interp(tokens, own_tokens, own) - np.interp(tokens, other_tokens, others)
        return list(zip(tokens.tolist(), differences.tolist()))


def read_run_curve(folder: Path) -> RunCurve:
    """A run's curve from its `results.json` and `trainer_state.json`; for a run under way, from its last checkpoint.

    Raises:
        ValueError: for a folder without those files, or a run with fewer than three finite held-out cross-entropies.
    """
    source = _finished_folder(folder)
    results = read_record(source / _RESULTS, {"rows_per_step": int, "max_length": int})
    state = read_record(source / TRAINER_STATE_NAME, {"log_history": list})
    tokens_a_step = results["rows_per_step"] * results["max_length"]
    offset = code_offset_nats(1, _code_bits(folder, results), results["max_length"])
    points = {}
    for entry in state["log_history"]:
        try:
            step, loss = entry["step"], entry.get(_LOSS)
            if loss is not None and math.isfinite(loss) and step > 0:
                # Real tokens, if the run counted them; for runs of version 0.1 an upper bound, n tokens a row.
                points[entry.get("num_input_tokens_seen", step * tokens_a_step)] = loss + offset
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{source / TRAINER_STATE_NAME} is damaged at 'log_history': {entry!r}.") from error
    if len(points) < _LEAST_POINTS:
        raise ValueError(
            f"{folder} was measured {len(points)} times on held-out text: a curve needs {_LEAST_POINTS}, so train it "
            "with smaller eval_steps."
        )
    return RunCurve(folder.resolve().name, results["max_length"], sorted(points.items()))


def _finished_folder(folder: Path) -> Path:
    """The run's own folder; a checkpoint's if that got further: the run is under way, for the first time or again."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    steps = {path: int(path.name.rpartition("-")[2]) for path in numbered if _is_complete(path)}
    if _is_complete(folder):
        own = read_record(folder / TRAINER_STATE_NAME, {"global_step": int})["global_step"]
        steps = {folder: own} | steps  # first, so that it is taken of equals
    if not steps:
        raise ValueError(
            f"{folder} is not an output folder of eem train: it lacks {_RESULTS} or {TRAINER_STATE_NAME}."
        )
    return max(steps, key=steps.__getitem__)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (_RESULTS, TRAINER_STATE_NAME))


def _code_bits(folder: Path, results: dict[str, Any]) -> float:
    bits = results.get("code_bits_per_row")
    if not isinstance(bits, int | float):
        raise ValueError(f"{folder}: the code has no storage format, so its bits cannot be counted: set code_dtype.")
    return bits


def curves_table(curves: Sequence[RunCurve]) -> Table:
    """One table row a run and fit."""
    return Table(
        columns=("run", "points", "tokens", "last loss", "fit", "loss = a", "+ b · x", "R²"),
        rows=[
            (
                curve.name,
                len(curve.points),
                curve.points[-1][0],
                curve.points[-1][1],
                fit.kind,
                fit.intercept,
                fit.slope,
                fit.r_squared,
            )
            for curve in curves
            for fit in curve.fits
        ],
        title="Normalized loss against training tokens",
        notes=(
            "Nats a token on held-out text, the code's bits spread over n tokens.",
            "x: tokens (linear) or their natural logarithm (log-linear).",
        ),
        formats={"tokens": ",.0f", "+ b · x": ".3g", "R²": ".4f"},
    )


def reach_table(curves: Sequence[RunCurve], losses: Sequence[float]) -> Table:
    """One table row a run and loss: the tokens needed to reach it, as measured and by the fits."""
    rows = []
    for loss in losses:
        for curve in curves:
            measured = curve.tokens_to_reach(loss)
            fitted = [fit.tokens(loss) for fit in curve.fits]
            rows.append((loss, curve.name, measured, measured / curve.max_length, *fitted))
    return Table(
        columns=("loss", "run", "tokens", "samples", "by the linear fit", "by the log-linear fit"),
        rows=rows,
        title="Needed to reach a loss",
        notes=("A sample is a row of n tokens. Beyond the last measurement a fit is an extrapolation.",),
        formats={
            "tokens": ",.0f",
            "samples": ",.0f",
            "by the linear fit": ",.0f",
            "by the log-linear fit": ",.4g",
        },
    )


def common_loss(curves: Sequence[RunCurve]) -> float:
    """The lowest loss that every run has reached."""
    return max(min(loss for _, loss in curve.points) for curve in curves)
