"""Every loss and rival of the fine-tuning study trains, and what is finished is not trained again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments


@pytest.fixture(scope="module")
def fine_tuning() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "studies" / "losses_on_text")
        import fine_tuning

        yield fine_tuning


def write_texts(path: Path, source: str, number: int) -> Path:
    texts = [f"{a} apples and {b} pears are {a + b}." for a in range(12) for b in range(12)][:number]
    pq.write_table(pa.table({"text": texts, "source": [source] * number}), path)
    return path


def test_every_method_trains_once_and_differs(
    fine_tuning: ModuleType, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    given = {
        "model": harness_model("llama", 64),
        "data": write_texts(tmp_path / "sums.parquet", "sums", 92),
        "kind": "sums",
        "general": write_texts(tmp_path / "general.parquet", "", 24),
        "output": tmp_path / "out",
        "records": tmp_path / "record",
        "documents": 8,
        "teacher_documents": 8,
        "epochs": 2,
        "threads": torch.get_num_threads(),
    }
    fine_tuning.main(**given)
    results = tmp_path / "out" / "results.json"
    runs = json.loads(results.read_text())["runs"]
    for method in fine_tuning.METHODS:
        run = runs[f"{method.name} #0"]
        lowest = min(run["validation"])
        assert run["validation"][run["stop"] - 1] == lowest, method
        assert (run["best"] == run["end"]) == (run["stop"] == 2), method
    different = {json.dumps(runs[f"{method.name} #0"]["end"]) for method in fine_tuning.METHODS}
    assert len(different) == len(fine_tuning.METHODS)
    before = results.read_bytes()
    fine_tuning.main(**given)
    assert results.read_bytes() == before


def test_rivals_have_the_losses_of_their_names(
    fine_tuning: ModuleType, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    from text_runs import RivalTrainer

    model = AutoModelForCausalLM.from_pretrained(harness_model("llama", 64)).eval()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    batch = {
        "input_ids": torch.tensor([[1, 7, 8, 9]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "labels": torch.tensor([[-100, 7, -100, 9]]),
    }
    logp_BTV = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    smoothed = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logp_BTV[0, [0, 2]], torch.tensor([7, 9]))
    rival = RivalTrainer(model=model, args=arguments, teacher=None)
    torch.testing.assert_close(rival.compute_loss(model, batch), smoothed)

    teacher = AutoModelForCausalLM.from_config(model.config).eval()
    known_BTV = teacher(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    divergence_BT = (known_BTV.exp() * (known_BTV - logp_BTV)).sum(-1)
    rival = RivalTrainer(model=model, args=arguments, teacher=teacher)
    torch.testing.assert_close(rival.compute_loss(model, batch), divergence_BT[0, [0, 2]].mean())
