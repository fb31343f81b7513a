"""Two processes on a CPU: DDP without a search for unused parameters, and FSDP2, equal to one process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NAMES = [
    "mixer",
    "mixer, heads and kernel",
    "mixer, tied",
    "mixer classifier",
    "eem",
    "eem, embedding",
    "eem, llama",
    "eem, tied gpt2",
    "autoencoder",
    "autoencoder, llama",
]

# What every process runs: two steps of SGD for each model of the job, the rows shared out among the processes.
BEGINNING = """
import json, os, sys, warnings
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
import modeling_eem

warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
folder = Path(sys.argv[1])
batch = {name: x.chunk(world)[rank] for name, x in load_file(folder / "batch.safetensors").items()}

def train(model, parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

def models():
    for class_name, name in json.loads((folder / "models.json").read_text()):
        yield name, getattr(modeling_eem, class_name).from_pretrained(folder / name).train()
"""
# All is written. The interpreter is not taken down: models and meshes still hold the group, whose gloo threads may
# then drop the tensors of their last work, for which they need it, and PyTorch aborts (its pull request 179291).
END = """
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""
DDP = """
from torch.nn.parallel import DistributedDataParallel

for name, model in models():
    train(DistributedDataParallel(model, find_unused_parameters=False), model.parameters())
    if rank == 0:
        model.save_pretrained(folder / "trained" / name)
"""
FSDP2 = """
from accelerate.utils.fsdp_utils import fsdp2_load_full_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from types import SimpleNamespace

mesh = init_device_mesh("cpu", (world,))

def shard(model):
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)

for name, model in models():
    full = {key: x.clone() for key, x in model.state_dict().items()}
    shard(model)
    parameters = dict(model.named_parameters())
    report = {}
    for key, x in model.state_dict().items():
        if key in parameters and x.placements != parameters[key].placements:
            report[key] = f"{x.placements} in the state dict, {parameters[key].placements} in the model"
    train(model, model.parameters())
    trained = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        save_file({key: x.clone() for key, x in trained.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.placements.json").write_text(json.dumps(report))
    # How accelerate loads a checkpoint when `fsdp_cpu_ram_efficient_loading` is on.
    if not model.config.tie_word_embeddings:
        empty = shard(type(model)(model.config).to("meta"))
        try:
            fsdp2_load_full_state_dict(SimpleNamespace(is_main_process=rank == 0), empty, full)
            loaded = get_model_state_dict(empty, options=StateDictOptions(full_state_dict=True))
            error = "" if rank or all(torch.equal(loaded[key], x) for key, x in full.items()) else "other values"
        except RuntimeError as failure:
            error = str(failure)
        if rank == 0:
            (folder / f"{name}.loading.txt").write_text(error)
        dist.barrier()
"""

# What FSDP2 does to a training: sharded weights of which one is damaged, and columns of floating point numbers.
TRAINING = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from modeling_eem.training.loss_watch import check_weights
from modeling_eem.training.training_forward import as_integers, forward_replaced

mesh = init_device_mesh("cpu", (world,))
model = fully_shard(torch.nn.Linear(2, 4), mesh=mesh)
check_weights(model, 3)
if rank == world - 1:
    model.weight.detach().to_local()[-1, -1] = float("nan")
try:
    check_weights(model, 3)
    error = ""
except FloatingPointError as failure:
    error = str(failure)

seen = {}
def forward(own_forward, x, **columns):
    seen.update({name: str(value.dtype) for name, value in columns.items()}, entropy=columns["token_entropies"].item())
    return own_forward(x)

model = fully_shard(torch.nn.Linear(2, 4), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
columns = {
    "token_entropies": torch.full((1, 1), 1.2345),
    "mean_token_weight": torch.tensor(0.1, dtype=torch.float64),
    "document_ids": torch.ones(1, 1, dtype=torch.int32),
}
with forward_replaced(model, forward):
    model(torch.ones(1, 2), **as_integers(columns, list(columns)))
(folder / f"training-{rank}.json").write_text(json.dumps({"error": error, "seen": seen}))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[[str], Any]) -> tuple[Path, dict[str, Any]]:
    """A folder with models and a batch, and the same models after the same steps in this process."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("distributed")
    input_ids = torch.randint(3, (4, 12))
    save_file({"input_ids": input_ids, "labels": input_ids.clone()}, folder / "batch.safetensors")
    models = {name: make_model(name).train() for name in NAMES}
    (folder / "models.json").write_text(json.dumps([[type(model).__name__, name] for name, model in models.items()]))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(input_ids=input_ids, labels=input_ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return folder, models


def _run(script: str, num_processes: int, folder: Path) -> None:
    path = folder / "job.py"
    path.write_text(BEGINNING + script + END)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(path), str(folder)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]


def _assert_trained_alike(states: dict[str, dict[str, Tensor]], models: dict[str, Any]) -> None:
    for name, model in models.items():
        expected = {key: x for key, x in model.state_dict().items() if key in states[name]}
        assert len(expected) >= len(list(model.parameters()))
        torch.testing.assert_close({key: states[name][key] for key in expected}, expected, rtol=1e-4, atol=1e-5)


def test_ddp_without_unused_parameters(job: tuple[Path, dict[str, Any]]) -> None:
    folder, models = job
    _run(DDP, 2, folder)
    states = {name: load_file(folder / "trained" / name / "model.safetensors") for name in models}
    _assert_trained_alike(states, models)


@pytest.fixture(scope="module", params=[1, 2])
def sharded_job(request: pytest.FixtureRequest, job: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    _run(FSDP2, request.param, job[0])
    return job


def test_fsdp2_trains_alike(sharded_job: tuple[Path, dict[str, Any]]) -> None:
    folder, models = sharded_job
    _assert_trained_alike({name: load_file(folder / f"{name}.safetensors") for name in models}, models)


def test_fsdp2_state_dicts_stay_sharded(sharded_job: tuple[Path, dict[str, Any]]) -> None:
    """Gathered in a state dict, a mixing matrix would be whole on every device, and come back so by `assign`."""
    folder, models = sharded_job
    reports = {name: json.loads((folder / f"{name}.placements.json").read_text()) for name in models}
    assert {name: report for name, report in reports.items() if report} == {}


def test_fsdp2_checkpoints_load_as_accelerate_loads_them(sharded_job: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = sharded_job
    errors = {path.name: path.read_text() for path in folder.glob("*.loading.txt")}
    assert errors and {name: error for name, error in errors.items() if error} == {}


def test_fsdp2_training_sees_all_shards_and_unrounded_columns(job: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = job
    _run(TRAINING, 2, folder)
    for rank in range(2):
        report = json.loads((folder / f"training-{rank}.json").read_text())
        assert "the weight weight is not finite at step 3" in report["error"]
        assert report["seen"] == {
            "token_entropies": "torch.float32",
            "mean_token_weight": "torch.float64",
            "document_ids": "torch.int32",
            "entropy": pytest.approx(1.2345, abs=1e-6),
        }
