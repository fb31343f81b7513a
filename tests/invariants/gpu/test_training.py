"""Runs on a GPU: resumed bit for bit with deterministic kernels, sharded by FSDP2, and quantized by bitsandbytes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitsAndBytesConfig

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.training import RunTrainer, prepare_run


def _train(path: Path, *overrides: str) -> None:
    trainer = RunTrainer(prepare_run(path, overrides))
    trainer.fit()
    trainer.write_finished_model()


@pytest.mark.usefixtures("deterministic_kernels")
@pytest.mark.parametrize("model_type", ["eem", "masked_mixer", "llama", "eem_autoencoder"])
def test_six_steps_are_three_and_three(
    model_type: str, write_run: Callable[..., Path], tmp_path: Path, device: torch.device
) -> None:
    """With noise, random prefixes and mixed precision (bfloat16 needs a GPU): weights and optimizer bit for bit."""
    is_gpu = device.type == "cuda"
    path = write_run(model_type, max_steps=6, save_steps=3, use_cpu=not is_gpu, bf16=is_gpu)
    _train(path)
    output = tmp_path / "out"
    expected = _state(output / "checkpoint-6")
    for file in output.iterdir():  # as if it had been killed after three steps
        if file.is_file():
            file.unlink()
    (output / "checkpoint-6").rename(tmp_path / "whole")
    _train(path)
    assert _equal(_state(output / "checkpoint-6"), expected)


def _state(checkpoint: Path) -> dict[str, Any]:
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=False, map_location="cpu")
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    return {"weights": load_file(checkpoint / "model.safetensors"), "optimizer": optimizer["state"], "losses": losses}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from safetensors.torch import save_file
import modeling_eem

folder, class_name, device = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("nccl" if device == "cuda" else "gloo")
mesh = init_device_mesh(device, (1,))
model = getattr(modeling_eem, class_name).from_pretrained(folder / "model").train().to(device)
policy = MixedPrecisionPolicy(param_dtype=getattr(torch, sys.argv[4]))
for module in model.modules():
    if type(module).__name__ in model._no_split_modules:
        fully_shard(module, mesh=mesh, mp_policy=policy)
fully_shard(model, mesh=mesh, mp_policy=policy)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ids = torch.arange(48, device=device).view(4, 12) % 40
for _ in range(2):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
save_file({name: x.contiguous().clone() for name, x in state.items()}, folder / "sharded.safetensors")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mixer, heads and kernel", "eem", "eem, llama", "autoencoder, llama"])
def test_fsdp2_on_one_device(
    name: str, dtype: torch.dtype, make_model: Callable, device: torch.device, tmp_path: Path, assert_near: Callable
) -> None:
    """Two steps by shards are two steps of one whole model on the CPU."""
    model = make_model(name).train()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "job.py").write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    arguments = [tmp_path / "job.py", tmp_path, type(model).__name__, device.type, str(dtype).removeprefix("torch.")]
    run = subprocess.run([*launch, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    before = {key: x.detach().clone() for key, x in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(48).view(4, 12) % 40
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = load_file(tmp_path / "sharded.safetensors")
    found = [
        torch.cat([(weights[key] - x).flatten() for key, x in before.items()])
        for weights in (trained, dict(model.named_parameters()))
    ]
    assert_near(*found, dtype)


_SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 32}
QUANTIZED: dict[str, Callable[[], Any]] = {
    "mixer": lambda: MaskedMixerForCausalLM(MaskedMixerConfig(**_SIZES, num_mixing_heads=4)),
    "eem": lambda: EEMForCausalLM(
        EEMConfig(encoder_config=_SIZES, decoder_config={**_SIZES, "max_position_embeddings": 33}, bottleneck_size=64)
    ),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", QUANTIZED)
def test_models_quantized_by_bitsandbytes_keep_their_loss(
    name: str, bits: int, device: torch.device, tmp_path: Path
) -> None:
    """Weights in 8 and 4 bits on the device: the loss moves by less than a hundredth, and tokens are generated."""
    model = QUANTIZED[name]().eval()
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    quantized = type(model).from_pretrained(tmp_path, quantization_config=config, device_map={"": device})
    linears = {key for key, module in quantized.named_modules() if type(module) is torch.nn.Linear}
    assert linears == {"lm_head"}
    ids_BT = torch.randint(2, 64, (4, 32))
    with torch.no_grad():
        expected = model(input_ids=ids_BT, labels=ids_BT).loss.item()
        loss = quantized(input_ids=ids_BT.to(device), labels=ids_BT.to(device)).loss.item()
    assert loss == pytest.approx(expected, rel=0.01)
    generated = quantized.generate(ids_BT[:, :8].to(device), max_new_tokens=4, do_sample=False)
    assert generated.shape == (4, 12)
