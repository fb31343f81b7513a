"""How the time of a command falls with processes, and that they write what one process writes.

    python benchmarks/launches.py --data text.parquet --data-dir data/hub --output records
    python benchmarks/launches.py --data text.parquet --only train --only entropy --repeats 1

| work | one process | several |
|---|---|---|
| `eem data prepare` | `--workers 1` | `--workers N`; `--executor ray` on N nodes |
| `eem entropy --method exact` | one thread, N threads | `torchrun`; N tasks of Ray |
| `train.py`, 200 steps | one thread, N threads | `accelerate launch` with `ddp.yaml` |
| `eem evaluate harness` | one thread, N threads | `torchrun` |

Times are of whole commands, start included, the median of `--repeats`. A Ray node has one CPU and lives on this
machine; Ray's own start is not in its times. Where Ray is not installed its column is empty.
"""

import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from datasets import load_from_disk
from paired import seconds
from rich.console import Console
from safetensors.torch import load_file

from eem.console import waiting
from modeling_eem.report import Table, write_results

ROOT = Path(__file__).parents[1]
EEM = ["-m", "eem"]
MODES = "1 process of 1 thread", "1 process, all threads", "a process a core", "a Ray node a core"
ONE, THREADS, PROCESSES, RAY = MODES
# What rounding in another order may make of the weights in 200 steps. Rows are equal to the last bit.
LEAST_ALIKE = 0.999
LARGEST_APART = 1e-3  # nats, of entropies


@dataclass(frozen=True)
class Setting:
    """What the commands work on.

    Attributes:
        folder: for what they write.
        count: processes, threads or nodes where there are several.
        data: text to prepare.
        data_dir: ORG/NAME folders of the harness's data; None: the Hub.
        documents: the file whose entropies are measured.
        model: the folder of an entropy estimation model.
        ray: the connected library, None where there is none.
    """

    folder: Path
    count: int
    data: Path
    data_dir: Path | None
    documents: Path
    model: Path
    ray: Any


def prepare(its: Setting) -> dict[str, Callable[[Path], None]]:
    command = [*EEM, "data", "prepare", "--data", its.data, "--rows", "windows", "--max-length", 256, "--shard-mb", 2]
    several = ["--workers", its.count]
    ways = {
        ONE: lambda output: _run([*command, "--workers", 1, "--output", output]),
        PROCESSES: lambda output: _run([*command, *several, "--output", output]),
    }
    if its.ray:
        ways[RAY] = lambda output: _run([*command, *several, "--executor", "ray", "--output", output])
    return ways


def entropy(its: Setting) -> dict[str, Callable[[Path], None]]:
    command = [*EEM, "entropy", "--model", its.model, "--method", "exact", "--data", its.documents]
    command += ["--rows-a-part", 8, "--output"]  # by itself the command cuts rows by the speed that it measures
    ways = _by_threads(command, its.count)
    ways[PROCESSES] = lambda output: _run([*_torchrun(its.count), *command, output], threads=1)
    if its.ray:
        ways[RAY] = lambda output: _as_ray_tasks(its, [*command, output])
    return ways


def train(its: Setting) -> dict[str, Callable[[Path], None]]:
    rows = 8
    command = [ROOT / "train.py", "--config", ROOT / "configs" / "cpu-small" / "causal-transformer.yaml"]
    command += ["--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none", "--use_cpu", "true"]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "accelerate" / "ddp.yaml"]
    launcher += ["--num_processes", its.count, "--mixed_precision", "no", "--main_process_port", _free_port()]
    each = ["--per_device_train_batch_size", rows // its.count, "--output_dir"]
    ways = _by_threads([*command, "--output_dir"], its.count)
    ways[PROCESSES] = lambda output: _run([*launcher, *command, *each, output], threads=1)
    return ways


def harness(its: Setting) -> dict[str, Callable[[Path], None]]:
    command = [*EEM, "evaluate", "harness", "--model", its.model, "--tasks", "arc_easy", "swag", "lambada_openai"]
    command += ["--limit", 200, "--bootstrap-iters", 0, "--batch-size", 8]
    command += [] if its.data_dir is None else ["--data-dir", its.data_dir]
    ways = _by_threads([*command, "--output"], its.count)
    ways[PROCESSES] = lambda output: _run([*_torchrun(its.count), *command, "--output", output], threads=1)
    return ways


def _by_threads(command: Sequence[object], count: int) -> dict[str, Callable[[Path], None]]:
    return {
        ONE: lambda output: _run([*command, output], threads=1),
        THREADS: lambda output: _run([*command, output], threads=count),
    }


def _torchrun(count: int) -> list[object]:
    return ["-m", "torch.distributed.run", "--nproc_per_node", count, "--master_port", _free_port()]


def _run(command: Sequence[object], threads: int | None = None) -> None:
    environment = dict(os.environ) if threads is None else os.environ | {"OMP_NUM_THREADS": str(threads)}
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _as_ray_tasks(its: Setting, command: Sequence[object]) -> None:
    """A task a node, told by torchrun's variables which of how many it is."""
    variables = {"LOCAL_RANK": 0, "WORLD_SIZE": its.count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    arguments = [sys.executable, *map(str, command)]

    @its.ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def process(rank: int) -> str:
        own = {name: str(value) for name, value in {**variables, "RANK": rank, "OMP_NUM_THREADS": 1}.items()}
        done = subprocess.run(arguments, env=os.environ | own, cwd=ROOT, capture_output=True, text=True)
        return done.stderr[-3000:] if done.returncode else ""

    if errors := [error for error in its.ray.get([process.remote(rank) for rank in range(its.count)]) if error]:
        raise RuntimeError(errors[0])


def same_arrow_files(one: Path, other: Path) -> str:
    """Every Arrow file has the same bytes."""
    files = [{str(path.relative_to(folder)): path for path in folder.rglob("*.arrow")} for folder in (one, other)]
    if not files[0] or files[0].keys() != files[1].keys():
        raise AssertionError(f"{one} and {other} hold other files")
    for name, path in files[0].items():
        if path.read_bytes() != files[1][name].read_bytes():
            raise AssertionError(f"{name} differs between {one} and {other}")
    return "the same bytes"


def alike_entropies(one: Path, other: Path) -> str:
    """The same rows, and values that differ by rounding alone: another number of threads adds in another order."""
    rows = [load_from_disk(str(folder))["train"] for folder in (one, other)]
    if rows[0]["input_ids"][:] != rows[1]["input_ids"][:]:
        raise AssertionError(f"{one} and {other} hold other rows")
    first, second = (np.concatenate(list(map(np.asarray, its["token_entropies"][:]))) for its in rows)
    apart = float(np.nanmax(np.abs(first - second)))
    if not np.array_equal(np.isnan(first), np.isnan(second)) or apart > LARGEST_APART:
        raise AssertionError(f"the entropies of {one} and {other} differ by {apart} nats")
    return "the same bytes" if apart == 0 else f"values at most {apart:.1g} nats apart"


def alike_weights(one: Path, other: Path) -> str:
    """The cosine of all weights together: rounding in another order grows with the steps."""
    weights = [
        torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(folder / "model.safetensors").items())])
        for folder in (one, other)
    ]
    cosine = torch.nn.functional.cosine_similarity(*weights, dim=0).item()
    if cosine < LEAST_ALIKE:
        raise AssertionError(f"the weights of {one} and {other} have a cosine of {cosine}")
    return f"weights with a cosine of {cosine:.6f}"


def same_scores(one: Path, other: Path) -> str:
    """Every score agrees to 1e-5, relative to itself above 1."""
    scores = [json.loads((folder / "harness.json").read_text())["models"][0]["tasks"] for folder in (one, other)]
    for task, values in scores[0].items():
        for metric, score in values["metrics"].items():
            theirs = scores[1][task]["metrics"][metric]["value"]
            if abs(score["value"] - theirs) > 1e-5 * max(1.0, abs(theirs)):
                raise AssertionError(f"{task}, {metric}: {score['value']} and {theirs}")
    return "the same scores"


# What is done, and how the results of two ways are compared.
CASES = {
    "prepare": (prepare, same_arrow_files),
    "entropy": (entropy, alike_entropies),
    "train": (train, alike_weights),
    "harness": (harness, same_scores),
}


@contextmanager
def _ray_nodes(count: int) -> Iterator[Any]:
    """Connected to a cluster of nodes of one CPU each; None where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        yield None
        return
    # Ray stops a worker when less than a twentieth of the machine's memory is free, whoever holds it.
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  # Ray's own spelling
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = cluster.address
    yield ray
    ray.shutdown()
    cluster.shutdown()


def _small_model(folder: Path) -> Path:
    """An entropy estimation model of one step: how long a pass takes does not depend on its weights."""
    config = ROOT / "configs" / "cpu-small" / "eem-transformer.yaml"
    steps = ["--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none"]
    _run([ROOT / "train.py", "--config", config, *steps, "--output_dir", folder])
    return folder


def _documents(path: Path, count: int) -> Path:
    import gzip

    text = ROOT / "modeling_eem" / "assets" / "quickstart" / "validation.jsonl.gz"
    path.write_bytes(b"".join(gzip.decompress(text.read_bytes()).splitlines(keepends=True)[:count]))
    return path


def launches(
    data: Annotated[Path, typer.Option(exists=True, help="Text for `eem data prepare`, some tens of MB.")],
    data_dir: Annotated[Path | None, typer.Option(help="ORG/NAME folders for the harness; else the Hub.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for launches.md and launches.json.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"By default all: {', '.join(CASES)}.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Processes where there are several.")] = 2,
    documents: Annotated[int, typer.Option(min=1, help="Held-out documents whose entropies are measured.")] = 40,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that a time is the median of.")] = 3,
) -> None:
    """Measure, compare what was written, print the table."""
    if unknown := set(only or ()) - set(CASES):
        raise typer.BadParameter(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    rows, notes, times = [], [], {}
    with TemporaryDirectory() as temporary, _ray_nodes(count) as ray:
        folder = Path(temporary)
        its = Setting(
            folder=folder,
            count=count,
            data=data.absolute(),
            data_dir=data_dir and data_dir.absolute(),
            documents=_documents(folder / "held-out.jsonl", documents),
            model=_small_model(folder / "model"),
            ray=ray,
        )
        for name in only or CASES:
            ways, compare = CASES[name]
            with waiting(name):
                times[name], agreement = _measured(ways(its), compare, folder / name, repeats)
            medians = {mode: statistics.median(values) for mode, values in times[name].items()}
            shown = [medians.get(mode, float("nan")) for mode in MODES]
            rows.append((name, *shown, medians[ONE] / medians[PROCESSES]))
            notes.append(f"{name}: {agreement}.")
    table = Table(
        columns=("command", *MODES, "gain of processes"),
        rows=rows,
        title=f"Seconds of a whole command on {count} cores, start included",
        notes=[f"The median of {repeats} runs, ways in turn. What the first way wrote and each other one:", *notes],
        formats={**dict.fromkeys(MODES, ".1f"), "gain of processes": ".2f"},
    )
    Console().print(table)
    if output is not None:
        content = {"seconds": times, "cores": count, "data": data.name, "documents": documents}
        write_results(output, "launches", [table], content)


def _measured(
    ways: dict[str, Callable[[Path], None]], compare: Callable[[Path, Path], str], folder: Path, repeats: int
) -> tuple[dict[str, list[float]], str]:
    """Seconds of each way, and in words how what they wrote agrees."""
    times: dict[str, list[float]] = {mode: [] for mode in ways}
    agreement: dict[str, str] = {}
    for _ in range(repeats):
        shutil.rmtree(folder, ignore_errors=True)
        for number, (mode, way) in enumerate(ways.items()):
            times[mode].append(seconds(lambda way=way, number=number: way(folder / str(number))))
            if number:
                agreement[mode] = compare(folder / "0", folder / str(number))
    return times, "; ".join(f"{mode}, {words}" for mode, words in agreement.items())


if __name__ == "__main__":
    typer.run(launches)
