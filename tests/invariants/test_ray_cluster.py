"""A Ray cluster of two nodes on this machine makes the same files as one process."""

import gzip
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TEXT = Path(__file__).parents[2] / "modeling_eem" / "assets" / "quickstart" / "validation.jsonl.gz"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Connected to a cluster of two nodes of one CPU each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Ray stops a worker when less than a twentieth of the machine's memory is free, whoever holds it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield ray
        ray.shutdown()
        cluster.shutdown()


def _eem(*arguments: object) -> None:
    done = subprocess.run([sys.executable, "-m", "eem", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.arrow")}


def test_two_nodes_prepare_the_rows_of_one_process(ray: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"  # a compressed file would be one shard
    text.write_bytes(b"".join(gzip.decompress(TEXT.read_bytes()).splitlines(keepends=True)[:150]))
    arguments = ["data", "prepare", "--data", text, "--max-length", 64, "--held-out", 0.1, "--shard-mb", 0.02]
    _eem(*arguments, "--executor", "ray", "--workers", 2, "--output", tmp_path / "ray")
    _eem(*arguments, "--workers", 1, "--output", tmp_path / "one")
    found = _files(tmp_path / "ray")
    assert len(found) > 4 and found == _files(tmp_path / "one")


def test_two_nodes_estimate_the_entropies_of_one_process(
    ray: Any, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    """`eem entropy` as a task a node, told by torchrun's variables which of how many it is."""
    from datasets import Dataset

    Dataset.from_dict({"input_ids": [[0, *range(5, 5 + 2 * n)] for n in range(1, 8)]}).save_to_disk(tmp_path / "rows")
    command = ["entropy", "--model", harness_model("eem"), "--method", "exact", "--data", tmp_path / "rows"]
    command += ["--rows-a-part", 1, "--output"]

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def process(rank: int, port: int, arguments: list[str]) -> tuple[str, int, str]:
        variables = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        done = subprocess.run(
            [sys.executable, "-m", "eem", *arguments], env=environment, capture_output=True, text=True
        )
        return ray.get_runtime_context().get_node_id(), done.returncode, done.stderr[-3000:]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [process.remote(rank, port, [*map(str, command), str(tmp_path / "ray")]) for rank in range(2)]
    nodes, codes, errors = zip(*ray.get(both))
    assert codes == (0, 0), errors
    assert len(set(nodes)) == 2
    _eem(*command, tmp_path / "one")
    found = _files(tmp_path / "ray")
    assert len(found) == 7 and found == _files(tmp_path / "one")
