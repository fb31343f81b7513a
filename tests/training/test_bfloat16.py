"""When a training is told about bfloat16; and that its loss there is float32's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_eem.training import RunTrainer, bfloat16, prepare_run, run_arguments


@pytest.mark.parametrize(
    ("is_on", "speedup", "said"),
    [
        (False, 2.0, "multiplies bfloat16 2.0 times as fast as float32: --bf16 true trains faster"),
        (False, 1.1, None),
        (False, 0.2, None),
        (True, 2.0, None),
        (True, 0.2, "multiplies float32 5.0 times as fast as bfloat16: --bf16 true costs time"),
    ],
)
def test_a_line_if_the_precision_costs_time(
    write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, is_on: bool, speedup: float, said: str | None
) -> None:
    monkeypatch.setattr(bfloat16, "bfloat16_speedup", lambda: speedup)
    advice = bfloat16.bfloat16_advice(prepare_run(write_run(bf16=is_on)))
    assert advice is None if said is None else said in str(advice)


def test_a_launchers_precision_is_heard(write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` hands it over by the environment: such a run is in bfloat16 already."""
    monkeypatch.setattr(bfloat16, "bfloat16_speedup", lambda: 2.0)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert bfloat16.bfloat16_advice(prepare_run(write_run())) is None


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines with a CPU alone")
def test_one_flag_trains_in_bfloat16_on_a_cpu(write_run: Callable[..., Path]) -> None:
    arguments = prepare_run(write_run(use_cpu=None), ["--bf16", "true"]).arguments
    assert arguments.use_cpu and arguments.bf16 and arguments.mixed_precision == "bf16"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines with a CPU alone")
@pytest.mark.parametrize("other", ["deepspeed", "xla"])
def test_other_launches_keep_the_answer_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """On a CPU accelerate would leave DeepSpeed out without a word, and XLA has devices of its own."""
    monkeypatch.setattr(run_arguments, "is_torch_xla_available", lambda: other == "xla")
    given = {"deepspeed": {"zero_optimization": {"stage": 3}}} if other == "deepspeed" else {}
    with pytest.raises(ValueError, match="use_cpu"):
        run_arguments.RunArguments(str(tmp_path), bf16=True, **given)


def test_the_speed_is_measured() -> None:
    before = torch.get_rng_state()
    assert 0.005 < bfloat16.bfloat16_speedup() < 200
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_500_steps_have_the_loss_of_float32(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Means of 50 steps; 0.5 % of float32's."""
    curves = []
    for name in ("false", "true"):
        sizes = {"hidden_size": 128, "num_hidden_layers": 4, "max_position_embeddings": 64, "vocab_size": 8000}
        given = {"max_steps": 500, "logging_steps": 50, "eval_strategy": "no", "save_strategy": "no", "bf16": name}
        text = {
            "tokenizer": "asset:tokenizer",
            "train_files": ["asset:quickstart/train.jsonl.gz"],
            "validation_files": ["asset:quickstart/validation.jsonl.gz"],
            "max_held_out_rows": 8,
        }
        path = write_run("masked_mixer", **sizes, **given, **text, learning_rate=1e-3, output_dir=str(tmp_path / name))
        trainer = RunTrainer(prepare_run(path))
        trainer.fit()
        curves.append(torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    assert len(curves[0]) == 10 and curves[0][-1] < curves[0][0] - 1
    torch.testing.assert_close(curves[1], curves[0], rtol=5e-3, atol=0)
