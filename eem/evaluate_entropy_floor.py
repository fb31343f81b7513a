"""eem evaluate entropy-floor: the entropy of a text, from runs with ever smaller codes."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eem.console import check_output, one_line_errors, progress_bar, quiet_loading


@one_line_errors()
def entropy_floor(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `eem train`, with codes of different sizes.")],
    output: Annotated[
        Path, typer.Option(help="Folder for entropy-floor.md, entropy-floor.json and entropy-floor.png.")
    ],
    data: Annotated[
        list[Path] | None, typer.Option(help="Held-out text or prepared rows; if not given, those of the runs.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Most tokens in a row, if the models' contexts differ.")] = None,
    zero: Annotated[float, typer.Option(help="Cross-entropy (bits per byte) that counts as none.", min=0.0)] = 0.01,
    known: Annotated[
        float | None, typer.Option(help="The source's true entropy in bits per byte, to compare with.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at a time; changes no value.", min=1)] = 16,
) -> None:
    """Estimate a text's entropy: the size of the code at which nothing is left to predict.

    Example: `eem evaluate entropy-floor runs/code-64 runs/code-32 runs/code-16 --output results`
    """
    from rich.console import Console

    from modeling_eem.evaluation.bits_table import measure
    from modeling_eem.evaluation.code_length import code_bits_of
    from modeling_eem.evaluation.entropy_floor import LEAST_RUNS, FloorPoint, fit_entropy_floor, floor_table
    from modeling_eem.evaluation.held_out_text import held_out_rows
    from modeling_eem.evaluation.scored_models import common_context, load_checkpoints
    from modeling_eem.files import folder_at_once
    from modeling_eem.report import write_results
    from modeling_eem.report.curve_plots import entropy_floor_plot

    check_output(output)
    if known is not None and not 0 < known < math.inf:
        raise ValueError(f"--known must be a positive number of bits per byte, not {known}: leave it out.")
    quiet_loading()
    if len(runs) < LEAST_RUNS:
        raise ValueError(f"a line with an interval needs {LEAST_RUNS} runs, not {len(runs)}: name more.")
    checkpoints = load_checkpoints(runs)
    sizes = {checkpoint.name: code_bits_of(checkpoint.config) for checkpoint in checkpoints}
    for name, code_bits in sizes.items():
        if not code_bits:
            raise ValueError(f"{name} is a causal model and has no code: leave it out.")
    if len(set(sizes.values())) < LEAST_RUNS:
        raise ValueError(
            f"the codes have {len(set(sizes.values()))} size(s), but a line needs {LEAST_RUNS}: add runs."
        )
    max_length = common_context(checkpoints, context)
    files = data or _held_out_files(runs)
    scored = [
        held_out_rows(files, checkpoint.tokenizer, checkpoint.config, "windows", max_length)
        for checkpoint in checkpoints
    ]
    with progress_bar("reading rows", sum(map(len, scored))) as steps:
        points = [
            FloorPoint(checkpoint.name, measure(checkpoint, rows, max_length, batch_size, steps.advance).total)
            for checkpoint, rows in zip(checkpoints, scored)
        ]
    floor = fit_entropy_floor(points, zero)
    table = floor_table(points, floor, known)
    Console().print(table)
    places = {point.name: (point.embedding, point.cross_entropy) for point in points}
    line, interval = (floor.intercept, floor.slope), (floor.low, floor.high)
    ideal = ("least in all", floor.smallest_total) if known is None else ("true entropy", known)
    content = {
        "data": [str(path) for path in files],
        "points": [
            {"run": point.name, "embedding": point.embedding, "cross_entropy": point.cross_entropy}
            | asdict(point.length)
            for point in points
        ],
        "floor": asdict(floor),
        "known": known,
    }
    with folder_at_once(output) as folder:
        entropy_floor_plot(folder / "entropy-floor.png", places, floor.used, line, floor.crossing, interval, ideal)
        figures = {"cross-entropy against embedding": "entropy-floor.png"}
        write_results(folder, "entropy-floor", [table], content, figures)


def _held_out_files(runs: list[Path]) -> list[Path]:
    """The files or the folder of rows that all the runs were measured on, by the names and hashes of their records."""
    recorded = [_recorded(run) for run in runs]
    if len({hashes for _, hashes in recorded}) > 1:
        raise ValueError("the runs held out different text: name one for all with --data.")
    for files, hashes in recorded:
        # A record holds names without folders: another file of that name may lie in the working directory.
        if None not in hashes and _hashes(files) == hashes:
            return files
    names = ", ".join(map(str, recorded[0][0]))
    raise ValueError(f"{names}, which the runs were measured on, is not found here: name the text with --data.")


def _recorded(run: Path) -> tuple[list[Path], tuple[str | None, ...]]:
    """The names and hashes of the text that a run was measured on; None for a hash that it did not record."""
    import yaml

    from modeling_eem.training.checkpoints import RUN_FILE

    if not (run / RUN_FILE).is_file():
        raise ValueError(f"{run} holds no {RUN_FILE}, which names its held-out text: name the text with --data.")
    try:
        data = yaml.safe_load((run / RUN_FILE).read_text())["data"]
        made_of = data.get("made_of", {})  # version 0.1 recorded no hashes
        if not data["validation_files"]:
            return [Path(data["train_rows"])], (made_of.get("rows_sha256"),)
        hashes = [digest for _, digest in made_of.get("validation_files", [(None, None)])]
        return [Path(name) for name in data["validation_files"]], tuple(sorted(hashes, key=str))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{run / RUN_FILE} is damaged: name the runs' held-out text with --data.") from error


def _hashes(files: list[Path]) -> tuple[str, ...] | None:
    """The hashes of text files, or of a folder of rows, as a run's record holds them; None if one is missing."""
    from modeling_eem.data.documents import document_files
    from modeling_eem.data.row_checksums import CONTENTS_FILE
    from modeling_eem.files import asset, sha256

    found = [Path(asset(str(file))) for file in files]
    if not all(file.exists() for file in found):
        return None
    if len(found) == 1 and (found[0] / CONTENTS_FILE).is_file():
        return (sha256(found[0] / CONTENTS_FILE),)
    return tuple(sorted(sha256(file) for path in found for file in document_files(path)))
