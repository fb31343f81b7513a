"""Does every environment write the same payloads, and read them back?

    python studies/codec_exactness/exactness.py --text general_validation.parquet --output studies/codec_exactness \
        --emulated "aarch64=qemu-aarch64 -L ROOT ROOT/usr/bin/python3.11"

Windows of text, as many tokens as asked for, are encoded and decoded by the compiled and by the plain decoder in a
process for each environment (`exactness_environments.py`), with 1 and 2 threads, 64, 7 and 1 windows at once. Payloads
are compared window by window with those of the first process. The reference decoder, NumPy alone, decodes some of them
on this processor and on emulated ones (`emulated_root.sh` makes a Python for them); PYTHONHOME and PYTHONPATH are set
to the root that follows `-L`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas
from exactness_environments import FAST, PLAIN, can_run

from modeling_eem.codec import IntegerModel, reference
from modeling_eem.codec.registry import default_model
from modeling_eem.report import Table, write_results
from modeling_eem.report.provenance import PACKAGES

WORKER = Path(__file__).with_name("exactness_worker.py")


@dataclass(frozen=True)
class Cell:
    """A process: how it computes, how many windows at once, how many tokens it is given."""

    decoder: str
    name: str
    environment: dict[str, str]
    at_once: int
    threads: int
    tokens: int


def cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    whole = Cell("Fast", "all this processor has", {}, 64, 2, arguments.tokens)
    yield whole
    yield Cell("Fast", whole.name, {}, 1, 1, arguments.single_tokens)
    for decoder, environments, tokens in (
        ("Fast", FAST, arguments.cell_tokens),
        ("Plain", PLAIN, arguments.plain_tokens),
    ):
        for name, environment in environments.items():
            if not can_run(environment):
                print(f"left out: {name}, which this processor lacks", flush=True)
                continue
            for threads in (1, 2):
                for at_once, share in ((64, 1), (7, 8), (1, 32)):
                    yield Cell(decoder, name, environment, at_once, threads, tokens // share)


def read(path: Path) -> list[str]:
    frame = pandas.read_json(path, lines=True) if ".jsonl" in path.name else pandas.read_parquet(path)
    return list(frame["text"])


def windows_of(model: IntegerModel, texts: list[str], tokens: int) -> list[list[int]]:
    """Windows of text; every third is cut short, so that windows in step end at different places."""
    ids = [i for text in texts for i in model.backend_tokenizer.encode(text, add_special_tokens=False).ids]
    if len(ids) < tokens:
        raise SystemExit(f"the texts hold {len(ids):,} tokens, fewer than {tokens:,}: name more.")
    windows, first, number = [], 0, 0
    while first < tokens:
        length = model.context - 1 if number % 3 else 1 + (number * 7919) % (model.context - 1)
        windows.append(ids[first : first + length])
        first += length
        number += 1
    return windows


def first_windows(windows: list[list[int]], tokens: int) -> list[list[int]]:
    taken, count = [], 0
    for window in windows:
        if count >= tokens:
            break
        taken.append(window)
        count += len(window)
    return taken


def run_cell(cell: Cell, folder: Path, windows: list[list[int]], scratch: Path) -> dict:
    file = scratch / "windows.json"
    file.write_text(json.dumps(first_windows(windows, cell.tokens)))
    command = [sys.executable, str(WORKER), str(folder), cell.decoder, str(cell.at_once), str(cell.threads), str(file)]
    done = subprocess.run(command, env={**os.environ, **cell.environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{cell}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def run_reference(command: list[str], folder: Path, model: IntegerModel, windows: list[list[int]]) -> int:
    """How many of the windows the reference decoder reads otherwise."""
    payloads = model.encode_windows(windows)
    lines = [
        json.dumps({"payload": payload.hex(), "length": len(window), "context": [], "with_code": False})
        for payload, window in zip(payloads, windows)
    ]
    environment = dict(os.environ)
    if "-L" in command:
        root = command[command.index("-L") + 1]
        environment |= {"PYTHONHOME": f"{root}/usr", "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages"}
    done = subprocess.run(
        [*command, reference.__file__, str(folder)],
        input="\n".join(lines),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    decoded = [json.loads(line) for line in done.stdout.splitlines()]
    return len(windows) - sum(one == other for one, other in zip(decoded, windows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, required=True, help=".parquet or .jsonl, column text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--model", type=Path, help="folder of a codec model; else the default one")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="64 windows at once, on all this processor has")
    parser.add_argument("--single-tokens", type=int, default=50_000, help="one window at a time")
    parser.add_argument("--cell-tokens", type=int, default=200_000, help="each environment of the compiled decoder")
    parser.add_argument("--plain-tokens", type=int, default=50_000, help="each environment of the plain decoder")
    parser.add_argument("--reference-tokens", type=int, default=2_000, help="of the reference decoder")
    parser.add_argument("--emulated", action="append", default=[], metavar="NAME=COMMAND", help="a Python elsewhere")
    arguments = parser.parse_args()

    folder = arguments.model or default_model().folder
    model = IntegerModel.from_pretrained(folder)
    frames = [
        pandas.read_json(p, lines=True) if ".jsonl" in p.name else pandas.read_parquet(p) for p in arguments.text
    ]
    windows = windows_of(model, [text for frame in frames for text in frame["text"]], arguments.tokens)
    rows, first = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for cell in cells(arguments):
            result = run_cell(cell, folder, windows, Path(scratch))
            first = first or result["payloads"]
            different = sum(one != other for one, other in zip(result["payloads"], first))
            encoding, decoding = (result["tokens"] / seconds for seconds in result["seconds"])
            rows.append(
                (cell.decoder.lower(), cell.name, cell.at_once, cell.threads, result["tokens"])
                + (len(result["payloads"]), different, result["wrong"], encoding, decoding)
            )
            print(rows[-1], flush=True)
    some = first_windows([window[:300] for window in windows], arguments.reference_tokens)
    commands = {"this processor": [sys.executable, "-I"]}
    commands |= {name: shlex.split(command) for name, command in (item.split("=", 1) for item in arguments.emulated)}
    for name, command in commands.items():
        wrong = run_reference(command, folder, model, some)
        rows.append(("reference", name, 1, 1, sum(map(len, some)), len(some), None, wrong, None, None))
        print(rows[-1], flush=True)
    columns = ("decoder", "environment", "at once", "threads", "tokens", "windows", "other payloads", "other tokens")
    table = Table(
        columns=(*columns, "encoded a second", "decoded a second"),
        rows=rows,
        title="Payloads and tokens in every environment",
        notes=(
            f"{sum(row[4] for row in rows):,} tokens in all. Seconds were measured beside other work.",
            "Other payloads: windows whose payload is not the first process's. Other tokens: windows that decode "
            "wrongly.",
        ),
        formats={"tokens": ",", "windows": ",", "encoded a second": ",.0f", "decoded a second": ",.0f"},
    )
    data = [path.name for path in arguments.text]
    content = {"model": model.id, "data": data, "rows": json.loads(table.to_json())["rows"]}
    write_results(arguments.output, "codec-exactness", [table], content, packages=(*PACKAGES, "numba", "numpy"))
    if any(row[6] or row[7] for row in rows):
        raise SystemExit("payloads or tokens differ: the format is broken here.")


if __name__ == "__main__":
    main()
