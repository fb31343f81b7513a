"""Launcher files: accelerate knows every key, FSDP2 wraps our layers, and DDP really runs in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import LlamaConfig

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig
from modeling_eem.training import TokenWeightedTrainingArguments

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))}
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "two-nodes": DistributedType.MULTI_GPU,
    "zero3": DistributedType.DEEPSPEED,
}
PARTS = ("fsdp_config", "deepspeed_config")


@pytest.mark.parametrize("name", FILES)
def test_accelerate_knows_every_key(name: str) -> None:
    config = load_config_from_file(str(FILES[name]))  # refuses unknown keys of the first level
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 4 * config.num_machines and config.mixed_precision == "bf16"
    options = vars(launch_command_parser().parse_args(["train.py"]))
    for part in PARTS:
        assert set(getattr(config, part)) <= set(options)  # keys of the second level it would set unseen


def test_each_kind_of_launch_has_a_file() -> None:
    assert set(FILES) == set(KINDS)


def test_deepspeed_clips_as_the_run_files_do() -> None:
    clipping = load_config_from_file(str(FILES["zero3"])).deepspeed_config["gradient_clipping"]
    assert clipping == TokenWeightedTrainingArguments().max_grad_norm


def _backbone(kind: str, positions: int) -> LlamaConfig | MaskedMixerConfig:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": positions}
    if kind == "mixer":
        return MaskedMixerConfig(**sizes)
    return LlamaConfig(**sizes, intermediate_size=32, num_attention_heads=2)


@pytest.mark.parametrize("encoder", ["mixer", "llama"])
@pytest.mark.parametrize("decoder", ["mixer", "llama"])
def test_fsdp2_wraps_every_layer(encoder: str, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launch_command_parser().parse_args(["--config_file", str(FILES["fsdp2"]), "train.py"])
    launch.use_fsdp, launch.gpu_ids, launch.mixed_precision, launch.dynamo_backend = True, "all", "no", "no"
    for key, value in load_config_from_file(str(FILES["fsdp2"])).fsdp_config.items():
        setattr(launch, key, value)
    launch.num_processes, launch.num_machines, launch.main_process_port = 2, 1, 29500
    for key, value in prepare_multi_gpu_env(launch).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    with torch.device("meta"):
        model = EEMForCausalLM(
            EEMConfig(encoder_config=_backbone(encoder, 6), decoder_config=_backbone(decoder, 7), bottleneck_size=2)
        )
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = {name for name, module in model.named_modules() if is_wrapped(module)}
    assert plugin.fsdp_version == 2
    assert wrapped == {f"model.{part}.layers.{i}" for part in ("encoder.backbone", "decoder") for i in range(2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_train_on_a_cpu(name: str, tmp_path: Path) -> None:
    if name == "zero3":
        pytest.importorskip("deepspeed")
    accelerate = Path(sys.executable).with_name("accelerate")
    launch = [str(accelerate), "launch", "--config_file", str(FILES[name])]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "29533"]
    run = ["train.py", "--config", "configs/cpu-small/eem-transformer.yaml", "--use_cpu", "true"]
    run += ["--max_steps", "2", "--save_steps", "2", "--max_held_out_rows", "8"]
    run += ["--output_dir", str(tmp_path), "--report_to", "none"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*launch, *run], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "checkpoint-2"
    assert {path.name for path in checkpoint.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    model = EEMForCausalLM.from_pretrained(tmp_path)  # whole, wherever its shards were
    assert all(parameter.isfinite().all() and parameter.any() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("token_loss", ["cross_entropy", "mile", "focal"])
def test_zero3_trains_a_transformer_that_is_looked_at_first(token_loss: str, tmp_path: Path) -> None:
    """It is born in shards, and looked at whole: whether it sees later tokens, and what its head is."""
    pytest.importorskip("deepspeed")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FILES["zero3"])]
    launch += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "29534"]
    run = ["train.py", "--config", "configs/cpu-small/causal-transformer.yaml", "--use_cpu", "true"]
    run += ["--max_steps", "2", "--save_steps", "2", "--max_held_out_rows", "8", "--token_loss", token_loss]
    run += ["--output_dir", str(tmp_path), "--report_to", "none"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*launch, *run], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model.safetensors").exists()
