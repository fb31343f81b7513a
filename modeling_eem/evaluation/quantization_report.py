"""Tables, plots and JSON of the measurements of `quantization.py`, for one model or several."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling_eem.evaluation.intervals import Interval, ratio_difference, ratio_interval
from modeling_eem.evaluation.quantization import (
    SWEEP_FORMATS,
    SWEEP_PARTS,
    UNROUNDED,
    CodeHistogram,
    FormatCost,
    LayerEffect,
)
from modeling_eem.report import Table, plain_name
from modeling_eem.report.quantization_plots import code_histograms, format_costs, layer_sweep

Formats = Mapping[str, Sequence[FormatCost]]
Sweeps = Mapping[str, Sequence[LayerEffect]]


def formats_table(formats: Formats) -> Table:
    """One table row a model and format."""
    rows = []
    for model, (plain, *others) in formats.items():
        rows.append(
            (model, UNROUNDED, plain.bits_a_code, plain.length.cross_entropy, None, "", plain.length.bits_per_byte)
        )
        for cost in others:
            more_D, tokens_D = _more(cost, plain)
            rows.append(
                (
                    model,
                    cost.code_format,
                    cost.bits_a_code,
                    cost.length.cross_entropy,
                    more_D.sum() / tokens_D.sum(),
                    ratio_interval(more_D, tokens_D).text("+z.4f"),
                    cost.length.bits_per_byte,
                )
            )
    return Table(
        columns=("model", "code in", "bits a code", "nats a token", "more than float32", "its 95 %", "bits a byte"),
        rows=rows,
        title="The code in each format",
        notes=(
            "Codes are packed into bytes, unpacked and decoded from what was unpacked; bits a code are the size of "
            "those bytes, a format's scale included.",
            "Nats a token leave the code's bits out, bits a byte hold them. float32 is the code unrounded.",
            "int8 probe: an identity Linear behind the code under LLM.int8(), and the same with W_up under it too.",
            "95 %: bootstrap over documents.",
        ),
        formats={"nats a token": ".4f", "more than float32": "+z.4f", "bits a code": ",.1f"},
    )


def _compared(formats: Formats) -> list[tuple[str, str, float, Interval]]:
    """(later model, format, how much more it costs this model than the first, interval)."""
    (_, (first_plain, *first_others)), *others = formats.items()
    compared = []
    for model, (plain, *costs) in others:
        for cost, first in zip(costs, first_others):
            if cost.code_format == first.code_format and cost.by_document.keys() == first.by_document.keys():
                more = ratio_difference(*_more(cost, plain), *_more(first, first_plain))
                compared.append((model, cost.code_format, *more))
    return compared


def comparison_table(formats: Formats) -> Table:
    """How much more a format costs each later model than the first; one table row a later model and format."""
    first_name = next(iter(formats))
    return Table(
        columns=("model", "code in", f"costs more than it costs {first_name}", "its 95 %"),
        rows=[(model, name, more, spread.text("+z.4f")) for model, name, more, spread in _compared(formats)],
        title="The same format, two models",
        notes=("Nats a token; below zero, rounding costs this model less. The same documents are drawn for both.",),
        formats={f"costs more than it costs {first_name}": "+z.4f"},
    )


def _more(cost: FormatCost, plain: FormatCost) -> tuple[NDArray, NDArray]:
    """Each document's added nats over the unrounded code, and its tokens, `[D]` each."""
    documents = sorted(cost.by_document)
    more = [cost.by_document[document][0] - plain.by_document[document][0] for document in documents]
    return np.array(more), np.array([cost.by_document[document][1] for document in documents])


def sweep_table(sweeps: Sweeps) -> Table:
    """One table row a model, part and format: the most sensitive layer, and the median."""
    rows = []
    for model, effects in sweeps.items():
        for part, name in _panels():
            own = [effect for effect in effects if (effect.part, effect.code_format) == (part, name)]
            worst = max(own, key=lambda effect: np.nan_to_num(effect.nats, nan=-np.inf))
            middle = float(np.nanmedian([effect.nats for effect in own]))
            rows.append((model, part, name, len(own), middle, worst.nats, worst.layer))
    return Table(
        columns=("model", "rounded", "to", "layers", "median nats more", "most", "by"),
        rows=rows,
        title="One layer at a time",
        notes=("Nats a token more when that part of one Linear or Embedding alone is rounded; the code is not.",),
        formats={"median nats more": "+z.5f", "most": "+z.5f"},
    )


def draw(folder: Path, formats: Formats, sweeps: Sweeps, histograms: Mapping[str, CodeHistogram]) -> dict[str, str]:
    """Write all plots; returns caption → file."""
    costs = {
        model: {
            cost.code_format: cost.length.cross_entropy - of_model[0].length.cross_entropy for cost in of_model[1:]
        }
        for model, of_model in formats.items()
    }
    format_costs(folder / "formats.png", costs, "What storing the code costs")
    panels = {
        model: {
            (part, name): {
                effect.layer: effect.nats for effect in effects if (effect.part, effect.code_format) == (part, name)
            }
            for part, name in _panels()
        }
        for model, effects in sweeps.items()
    }
    layer_sweep(folder / "layers.png", panels, "One layer rounded at a time")
    figures = {"what each format costs": "formats.png", "what each layer costs": "layers.png"}
    for model, histogram in histograms.items():
        file = f"histogram-{plain_name(model)}.png"
        code_histograms(folder / file, histogram.edges, histogram.counts, f"Numbers of the code, {model}")
        figures[f"the code's numbers, {model}"] = file
    return figures


def to_json(formats: Formats, sweeps: Sweeps, histograms: Mapping[str, CodeHistogram]) -> dict[str, Any]:
    """All numbers, by model. What a format costs more than no rounding, or the first model, is in nats a token."""
    beside_first = {(model, name): (more, spread) for model, name, more, spread in _compared(formats)}

    def costs(model: str) -> Iterator[dict[str, Any]]:
        for cost in formats[model]:
            more_D, tokens_D = _more(cost, formats[model][0])
            content = {
                "format": cost.code_format,
                "bits_a_code": cost.bits_a_code,
                "cross_entropy": cost.length.cross_entropy,
                "more_than_float32": float(more_D.sum() / tokens_D.sum()),
                "more_than_float32_95": asdict(ratio_interval(more_D, tokens_D)),
                "bits_per_byte": cost.length.bits_per_byte,
            }
            if (model, cost.code_format) in beside_first:
                more, spread = beside_first[model, cost.code_format]
                content |= {"costs_more_than_the_first": more, "costs_more_than_the_first_95": asdict(spread)}
            yield content

    return {
        model: {
            "formats": list(costs(model)),
            "layers": [asdict(effect) for effect in sweeps[model]],
            "histogram": asdict(histograms[model]) | {"aggregated": histograms[model].aggregated},
        }
        for model in formats
    }


def _panels() -> list[tuple[str, str]]:
    return [(part, name) for part in SWEEP_PARTS for name in SWEEP_FORMATS]
