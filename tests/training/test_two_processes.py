"""Two processes over gloo make the same optimizer step as one, for every token loss: DDP, FSDP2, ZeRO-3.

They measure the same held-out loss, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_eem.training import TOKEN_LOSSES

SCRIPT = """
import sys
import torch
from datasets import Dataset
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM
from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.loading import whole_weights
from modeling_eem.training import TOKEN_LOSSES, TokenWeightedTrainer, TokenWeightedTrainingArguments

folder, per_device, kind, architecture = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
STEPS = int(sys.argv[5]) if len(sys.argv) > 5 else 1
generator = torch.Generator().manual_seed(0)
rows = []
for length in torch.randint(4, 17, (8 if STEPS == 1 else 10,), generator=generator).tolist():
    ids = torch.randint(2, 40, (length - 1,), generator=generator).tolist()
    entropies = torch.rand(length - 1, generator=generator).tolist()
    rows.append({"input_ids": [1, *ids], "token_entropies": [float("nan"), *entropies]})
sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, max_position_embeddings=16)
sizes |= dict(bos_token_id=1, pad_token_id=0)


def build():
    torch.manual_seed(1)
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, intermediate_size=32))
    return MaskedMixerForCausalLM(MaskedMixerConfig(**sizes))


def whole(model):
    \"\"\"The parameters, gathered where they are shards.\"\"\"
    with whole_weights(model):
        return {
            name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
            for name, p in model.named_parameters()
        }


def shard(trainer):
    \"\"\"As accelerate does on GPUs, once the trainer has the model; a CPU it passes over without a word.\"\"\"
    for module in trainer.model.modules():
        if type(module).__name__ in trainer.model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(trainer.model, mesh=mesh)
    trainer.accelerator.prepare_model = lambda model, **_: model


deepspeed = {
    "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
}
results = {}
for token_loss in TOKEN_LOSSES:
    model = build()
    before = whole(model)
    trainer = TokenWeightedTrainer(
        model=model,
        args=TokenWeightedTrainingArguments(
            output_dir=folder, token_loss=token_loss, per_device_train_batch_size=per_device, max_steps=STEPS,
            learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            gradient_accumulation_steps=8 // per_device // WORLD if STEPS == 1 else 1,
            deepspeed=deepspeed if kind == "zero3" else None,
        ),
        train_dataset=Dataset.from_list(rows),
    )
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (trainer.args.world_size,))
        shard(trainer)
    trainer.train()
    after = whole(model)
    results[token_loss] = trainer.state.log_history[0]["loss"], {name: before[name] - after[name] for name in before}
    is_sharded = any(hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters())
    assert is_sharded == (kind in ("fsdp2", "zero3")), "not sharded"
draws = trainer.accelerator.gather(torch.rand(1)).tolist()
if trainer.is_world_process_zero():
    torch.save((trainer.args.world_size, results, draws), f"{folder}/{kind}.pt")
""".replace("WORLD", "int(__import__('os').environ.get('WORLD_SIZE', '1'))")


def run_in_one_and_two(source: str, folder: Path, one: list[str], two: list[str]) -> None:
    """Run a script in one process and in two, each with the folder and words of its own."""
    script = folder / "script.py"
    script.write_text(source)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for start, words in (([], one), (launcher, two)):
        subprocess.run([sys.executable, *start, str(script), str(folder), *words], check=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mixer", "llama"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero3"])
def test_two_processes_make_the_step_of_one(tmp_path: Path, kind: str, architecture: str) -> None:
    if kind == "zero3":
        pytest.importorskip("deepspeed")
    run_in_one_and_two(SCRIPT, tmp_path, ["8", "one", architecture], ["2", kind, architecture])
    world_size, single, _ = torch.load(tmp_path / "one.pt")
    assert world_size == 1
    world_size, double, draws = torch.load(tmp_path / f"{kind}.pt")
    assert world_size == 2
    assert len(set(draws)) == 2  # the code's noise is different on every device
    for token_loss in TOKEN_LOSSES:
        assert double[token_loss][0] == pytest.approx(single[token_loss][0], rel=1e-4), token_loss
        for name, gradient in single[token_loss][1].items():
            torch.testing.assert_close(double[token_loss][1][name], gradient, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_two_processes_train_on_each_row_once_an_epoch(tmp_path: Path) -> None:
    """Of the second step of ten rows, two rows are new; accelerate fills up 2 × 4 with six earlier ones."""
    run_in_one_and_two(SCRIPT, tmp_path, ["8", "one", "mixer", "2"], ["4", "ddp", "mixer", "2"])
    _, single, _ = torch.load(tmp_path / "one.pt")
    _, double, _ = torch.load(tmp_path / "ddp.pt")
    for token_loss in TOKEN_LOSSES:
        for name, change in single[token_loss][1].items():
            torch.testing.assert_close(double[token_loss][1][name], change, rtol=1e-3, atol=1e-4)


TWICE = """
import sys
import torch
from datasets import Dataset
from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments

folder = sys.argv[1]
sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, max_position_embeddings=16)


class Recorded(TokenWeightedTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        read.append(inputs["input_ids"][0, 1])
        return super().training_step(model, inputs, *args, **kwargs)


trainer = Recorded(
    model=MaskedMixerForCausalLM(MaskedMixerConfig(**sizes, bos_token_id=1, pad_token_id=0)),
    args=TokenWeightedTrainingArguments(
        output_dir=folder, num_train_epochs=1, per_device_train_batch_size=1, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    ),
    train_dataset=Dataset.from_list([{"input_ids": [1, row, 3, 4]} for row in range(5, 15)]),
)
orders = []
for _ in range(2):
    read = []
    trainer.train()
    orders.append(trainer.accelerator.gather(torch.stack(read)).tolist())
if trainer.is_world_process_zero():
    torch.save(orders, f"{folder}/orders-{trainer.args.world_size}.pt")
"""


@pytest.mark.slow
def test_a_second_training_of_two_processes_reads_each_row_once(tmp_path: Path) -> None:
    run_in_one_and_two(TWICE, tmp_path, [], [])
    one, two = (torch.load(tmp_path / f"orders-{processes}.pt") for processes in (1, 2))
    # Each process reads every second row; the first one's are gathered first.
    assert two == [[*order[::2], *order[1::2]] for order in one]
    assert [sorted(order) for order in two] == [list(range(5, 15))] * 2


MEASURE = """
import sys
import torch
from datasets import Dataset
from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem import MaskedMixerForTokenClassification
from modeling_eem.training import TokenWeightedTrainer, TokenWeightedTrainingArguments

folder, per_device = sys.argv[1], int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
rows = []
for length in (4, 16, 7, 9, 12):
    ids = torch.randint(2, 40, (length - 1,), generator=generator).tolist()
    rows.append({"input_ids": [1, *ids], "token_entropies": [float("nan"), *map(float, range(length - 1))]})
sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, max_position_embeddings=16)
sizes |= dict(bos_token_id=1, pad_token_id=0, initializer_range=0.5)
config, regression = MaskedMixerConfig(**sizes), MaskedMixerConfig(**sizes, num_labels=1)
coded = EEMAutoencoderConfig(encoder_config=config, decoder_config=config, bottleneck_size=4)
losses = []
for build in (
    lambda: MaskedMixerForCausalLM(config),
    lambda: MaskedMixerForTokenClassification(regression),
    lambda: EEMAutoencoder(coded),
):
    torch.manual_seed(1)
    trainer = TokenWeightedTrainer(
        model=build(),
        args=TokenWeightedTrainingArguments(
            output_dir=folder, per_device_eval_batch_size=per_device, report_to="none", disable_tqdm=True,
            use_cpu=True, dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
    )
    losses.append(trainer.evaluate()["eval_loss"])
if trainer.is_world_process_zero():
    torch.save((trainer.args.world_size, losses), f"{folder}/losses-{per_device}.pt")
"""


@pytest.mark.slow
def test_two_processes_measure_each_row_once(tmp_path: Path) -> None:
    """Of the last batches, with one row of five, three rows are repeated ones: one process has no other."""
    run_in_one_and_two(MEASURE, tmp_path, ["5"], ["2"])
    world_size, whole = torch.load(tmp_path / "losses-5.pt")
    assert world_size == 1
    assert torch.load(tmp_path / "losses-2.pt") == (2, pytest.approx(whole, rel=1e-5))
