"""Two processes over gloo make the same optimizer step as one, for every token loss."""

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
from modeling_eem import MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.data import CausalCollator
from modeling_eem.training import TOKEN_LOSSES, TokenWeightedTrainer, TokenWeightedTrainingArguments

folder, per_device = sys.argv[1], int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
rows = []
for length in torch.randint(4, 17, (8,), generator=generator).tolist():
    ids = torch.randint(2, 40, (length - 1,), generator=generator).tolist()
    entropies = torch.rand(length - 1, generator=generator).tolist()
    rows.append({"input_ids": [1, *ids], "token_entropies": [float("nan"), *entropies]})
results = {}
for token_loss in TOKEN_LOSSES:
    torch.manual_seed(1)
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, max_position_embeddings=16)
    model = MaskedMixerForCausalLM(MaskedMixerConfig(**sizes, bos_token_id=1, pad_token_id=0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = TokenWeightedTrainer(
        model=model,
        args=TokenWeightedTrainingArguments(
            output_dir=folder, token_loss=token_loss, per_device_train_batch_size=per_device, max_steps=1,
            learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=CausalCollator(pad_token_id=0, vocab_size=40, max_length=16),
    )
    trainer.train()
    step = {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}
    results[token_loss] = trainer.state.log_history[0]["loss"], step
    world_size = trainer.args.world_size
draws = trainer.accelerator.gather(torch.rand(1)).tolist()
if trainer.is_world_process_zero():
    torch.save((world_size, results, draws), f"{folder}/{per_device}.pt")
"""


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(script), str(tmp_path), "8"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(one, check=True, env=environment)
    subprocess.run([*two, str(script), str(tmp_path), "4"], check=True, env=environment)
    world_size, single, _ = torch.load(tmp_path / "8.pt")
    assert world_size == 1
    world_size, double, draws = torch.load(tmp_path / "4.pt")
    assert world_size == 2
    assert len(set(draws)) == 2  # the code's noise is different on every device
    for token_loss in TOKEN_LOSSES:
        assert double[token_loss][0] == pytest.approx(single[token_loss][0], rel=1e-4), token_loss
        for name, gradient in single[token_loss][1].items():
            torch.testing.assert_close(double[token_loss][1][name], gradient, rtol=1e-3, atol=2e-5)
