"""Which differences to early-stopped cross-entropy stand once they are corrected for their number (Holm).

python studies/theorem1/theorem1_holm.py --record studies/theorem1/theorem1.json --output studies/theorem1

Reads the runs of a record of `theorem1.py`, and trains nothing. A difference is that of a
method's best to the control's, seed by seed; its p-value is that of Student's paired test. All of a record's
differences are one family.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from scipy import stats
from theorem1_report import Experiment
from theorem1_runs import CONTROL, Curves, Key

from eem.console import one_line_errors
from modeling_eem.evaluation.intervals import holm
from modeling_eem.report import Table
from modeling_eem.report.results import write_results

LEVEL = 0.05

app = typer.Typer(add_completion=False)


def paired_p_value(differences: Sequence[float]) -> float:
    """Of a mean of 0, by Student's test; 1 where all differences are 0."""
    if not any(differences):
        return 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def read_experiment(path: Path) -> Experiment:
    """The runs of a record."""
    runs = json.loads(path.read_text())["runs"]
    keys, curves = list(Key.__dataclass_fields__), list(Curves.__dataclass_fields__)
    results = {
        Key(**{name: run[name] for name in keys}): Curves(**{name: run[name] for name in curves}) for run in runs
    }
    return Experiment(name=path.stem, title="", unit="", settings={}, results=results)


def differences(experiment: Experiment) -> list[dict]:
    """Each method against the control in each cell: the mean difference, its p-value, and that for the family."""
    found = []
    for source, size in experiment.cells:
        stopped = [run.test[run.stop] for run in experiment.runs(source, size, CONTROL)]
        for method in experiment.methods:
            if method == CONTROL:
                continue
            best = [run.test[run.stop] for run in experiment.runs(source, size, method)]
            paired = [value - control for value, control in zip(best, stopped, strict=True)]
            found.append(
                {
                    "source": source,
                    "size": size,
                    "loss": method.loss,
                    "target": method.target,
                    "difference": math.fsum(paired) / len(paired),
                    "p": paired_p_value(paired),
                }
            )
    for difference, p in zip(found, holm([difference["p"] for difference in found])):
        difference["p, Holm"] = p
    return found


def counts(found: Sequence[dict]) -> tuple[int, int, int, int, int]:
    """Differences; those below and above 0 that are told apart one by one; those that stand together."""
    signs = [
        [math.copysign(1, difference["difference"]) * (difference[name] < LEVEL) for difference in found]
        for name in ("p", "p, Holm")
    ]
    return len(found), *(its.count(sign) for its in signs for sign in (-1, 1))


def table(found: Sequence[dict], name: str) -> Table:
    """A line a cell, and all of them."""
    cells = list(dict.fromkeys((difference["source"], difference["size"]) for difference in found))
    of_cell = {cell: [its for its in found if (its["source"], its["size"]) == cell] for cell in cells}
    rows = [(f"{source}, {size}", *counts(of_cell[source, size])) for source, size in cells]
    notes = [
        "One by one: the 95 % interval of the difference excludes 0. Together: Holm's p-value of all the record's "
        f"differences is below {LEVEL:g}.",
    ]
    for (source, size), its in of_cell.items():
        stand = [
            f"{each['loss']} ({each['target']})" if each["target"] else each["loss"]
            for each in its
            if each["p, Holm"] < LEVEL and each["difference"] < 0
        ]
        if stand:
            notes.append(f"Below early-stopped cross-entropy, together: {source}, {size}: {'; '.join(stand)}.")
    return Table(
        columns=("cell", "differences", "below", "above", "below, together", "above, together"),
        rows=[*rows, ("all", *counts(found))] if len(rows) > 1 else rows,
        title=f"{name}: differences to early-stopped cross-entropy, at the best step",
        notes=notes,
    )


@app.command()
@one_line_errors()
def main(
    record: Annotated[Path, typer.Option(help="JSON of a record.")],
    output: Annotated[Path, typer.Option(help="Folder for NAME-holm.md and NAME-holm.json.")],
) -> None:
    """Correct a record's differences for their number."""
    experiment = read_experiment(record)
    found = differences(experiment)
    write_results(output, f"{experiment.name}-holm", [table(found, experiment.name)], {"differences": found})


if __name__ == "__main__":
    app()
