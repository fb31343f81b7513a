"""Every table on terminals of 60, 80 and 120 columns: no number, no name and no word is cut."""

import io
import random
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from modeling_eem.bits import CodeLength
from modeling_eem.entropy.statistics import Estimate, Regression, SplitWords
from modeling_eem.evaluation.bits_table import (
    CompressorBits,
    ModelBits,
    bits_table,
    compressors_table,
    differences_table,
)
from modeling_eem.evaluation.correlation import regressions_table, words_table
from modeling_eem.evaluation.curves import RunCurve, curves_table, reach_table
from modeling_eem.evaluation.entropy_floor import FloorPoint, fit_entropy_floor, floor_table
from modeling_eem.evaluation.harness_scores import ModelScores, Score, TaskScores
from modeling_eem.evaluation.harness_tables import benchmark_table, task_table
from modeling_eem.evaluation.harness_tables import differences_table as harness_differences
from modeling_eem.evaluation.harness_tasks import COLUMNS
from modeling_eem.evaluation.quantization import UNROUNDED, FormatCost, LayerEffect
from modeling_eem.evaluation.quantization_report import comparison_table, formats_table, sweep_table
from modeling_eem.report import Table

NAMES = "eem-d512-int4-random-prefixes", "causal-baseline-of-equal-compute"
UNITS = dict.fromkeys((*NAMES, "exact", "occlusion"), "logit L1 distance")


def _bits() -> list[ModelBits]:
    windows = [CodeLength(1200.5 + i, 96.0, 8.0, 900, 200) for i in range(6)]
    return [ModelBits(name, 256, size, range(6), windows) for name, size in zip(NAMES, (16, 0))]


def _curves() -> list[RunCurve]:
    points = [(1e6, 6.5), (2e6, 6.1), (4e6, 5.9), (1.6e8, 5.8)]
    return [RunCurve(name, 256, points) for name in NAMES]


def _floor() -> Table:
    lengths = [(size, CodeLength(1.5 * (1000 - size), size, 8, 1000, 250)) for size in (100, 200, 300, 400)]
    points = [FloorPoint(f"{NAMES[0]}-{size}", length) for size, length in lengths]
    return floor_table(points, fit_entropy_floor(points), known=0.9)


def _estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.123, value + 0.123)


def _regressions() -> Table:
    fit = Regression(*(_estimate(value) for value in (0.912, -0.034, 0.905, 0.951)), tokens=1_234_567, rows=900)
    return regressions_table({("exact", NAMES[1]): fit, ("exact", "occlusion"): fit}, UNITS)


def _formats() -> dict[str, list[FormatCost]]:
    by_document = {number: (20.0 + number, 10) for number in range(3)}
    length = CodeLength(63.0, 300, 8, 100, 30)
    names = (UNROUNDED, "float8_e4m3fn", "float8_e5m2", "float6_e3m2", "int8 probe, up too")
    return {model: [FormatCost(name, 1024.5, length, by_document) for name in names] for model in NAMES}


def _sweep() -> Table:
    layer = "decoder.model.layers.11.token_mixing.linear"
    parts = [(part, name) for part in ("activations", "weights") for name in ("float8_e4m3fn", "float8_e5m2")]
    return sweep_table({model: [LayerEffect(layer, *part, 0.0123) for part in parts] for model in NAMES})


def _scores() -> list[ModelScores]:
    tasks = {}
    for column in COLUMNS:
        for task in column.tasks(is_offline=True):
            metrics = {column.metric_of(task): Score(0.4321, 0.0123), "perplexity,none": Score(299530622.9, 1.7e9)}
            tasks[task] = TaskScores("1.0", 0, 500, 10_000, 3, 2, metrics)
    return [ModelScores(name, "llama", "CausalHarnessModel", 10, 512, "float32", 1, tasks) for name in NAMES]


TABLES: dict[str, Callable[[], Table]] = {
    "bits": lambda: bits_table(_bits(), "windows of up to 256 tokens"),
    "differences": lambda: differences_table(_bits()),
    "compressors": lambda: compressors_table([CompressorBits("brotli", 2.1, 3.2)]),
    "curves": lambda: curves_table(_curves()),
    "reach": lambda: reach_table(_curves(), [5.8, 1.0]),
    "floor": _floor,
    "regressions": _regressions,
    "words": lambda: words_table(
        {name: SplitWords(*map(_estimate, (3.1, 1.2, 1.9)), words=1234) for name in NAMES}, UNITS
    ),
    "formats": lambda: formats_table(_formats()),
    "comparison": lambda: comparison_table(_formats()),
    "sweep": _sweep,
    "benchmarks": lambda: benchmark_table(_scores(), is_offline=True),
    "benchmark differences": lambda: harness_differences(_scores(), True, True, 10),
    "all metrics": lambda: task_table(_scores()),
}


def _random_table(seed: int) -> Table:
    generator = random.Random(seed)
    columns = [f"{'name ' * generator.randint(0, 4)}{i}" for i in range(generator.randint(1, 14))]
    kinds = [
        lambda: generator.uniform(-1e9, 1e9),
        lambda: "x" * generator.randint(0, 70),
        lambda: None,
        lambda: "日本 語",
    ]
    rows = [[generator.choice(kinds)() for _ in columns] for _ in range(generator.randint(0, 5))]
    return Table(columns, rows, title="A title " * 12, notes=["a note " * 30])


TABLES |= {f"random {seed}": lambda seed=seed: _random_table(seed) for seed in range(25)}


def shown(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", TABLES)
def test_nothing_is_cut(name: str, width: int) -> None:
    table = TABLES[name]()
    text = shown(table, width)
    assert max(map(cell_len, text.splitlines())) <= width
    together = "".join(text.split())
    for cell in (cell for row in table._cells() for cell in row):
        if cell_len(cell) <= width - 2:
            assert cell.strip() in text, f"{cell!r} is cut at {width} columns"
        assert "".join(cell.split()) in together
    for words in [*(table.columns if table.rows else []), table.title, *table.notes]:
        assert all(word in text for word in words.split() if cell_len(word) <= width)


@pytest.mark.parametrize("width, form", [(200, "side by side"), (85, "names folded"), (60, "upright"), (20, "blocks")])
def test_the_widest_form_that_fits(width: int, form: str) -> None:
    columns = ["run", *(f"bits a byte {i}" for i in range(9))]
    text = shown(Table(columns, [["a run", *[0.5] * 9], ["b run", *[1.5] * 9]]), width)
    lines = text.splitlines()
    assert {
        "side by side": "bits a byte 0 ┃" in lines[1],
        "names folded": "bits ┃" in text and "bits a byte" not in text and "a run" in text,
        "upright": "┃ run" in lines[1] and "a run" in lines[1] and "b run" in lines[1],
        "blocks": "┃" not in text and "bits a byte 8  1.500" in lines,
    }[form], text


def test_rows_that_share_their_first_value_stand_in_tables_below_it() -> None:
    columns, models = ["model", "task", "bits"], ["a" * 30, "b" * 30]
    text = shown(Table(columns, [[model, "x" * 40, i] for model in models for i in (1, 2)]), 60)
    assert text.count(f"model: {models[0]}\n┏") == text.count(f"model: {models[1]}\n┏") == 1
    assert text.count("x" * 40) == 4 and text.count("┃ task") == 2


@pytest.mark.parametrize("name", ["formats", "all metrics"])
def test_a_long_table_is_no_list_of_blocks_at_80_columns(name: str) -> None:
    table = TABLES[name]()
    lines = shown(table, 80).splitlines()
    assert sum(line.startswith("│") for line in lines) == len(table.rows)


def test_a_table_without_columns_or_rows_is_shown() -> None:
    assert "only" in shown(Table(["only"], []), 60)
