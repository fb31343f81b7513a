"""What is measured of a checkpoint is what the models say themselves, and known curves give known lines."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM

ROOT = Path(__file__).parents[2]
LENGTH, WIDTH = 16, 16
VOCABULARY = 8000
TEXT = "The state of the Union is strong, and every part of it pays for what it knows of the text to come. "


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "studies" / "over_training")
        import over_training

        yield over_training


def mixer(width: int) -> MaskedMixerConfig:
    return MaskedMixerConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=1, max_position_embeddings=LENGTH
    )


def checkpoints_of(folder: Path, build: type[PreTrainedModel], config: object) -> None:
    for step in (1, 2, 4):
        torch.manual_seed(step)
        build(config).save_pretrained(folder / f"checkpoint-{step}")
        state = {"num_input_tokens_seen": 1000 * step}
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = EEMConfig(
        encoder_config=mixer(8),
        decoder_config=mixer(WIDTH),
        bottleneck_size=4,
        memory_introduction="combination",
        code_dtype="float8_e4m3fn",
    )
    checkpoints_of(folder / "eem", EEMForCausalLM, config)
    checkpoints_of(folder / "causal", MaskedMixerForCausalLM, mixer(WIDTH))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    tokenizer.save_pretrained(folder / "rows" / "tokenizer")
    rows = [[tokenizer.bos_token_id, *range(300 + index, 300 + index + LENGTH - 1)] for index in range(40)]
    Dataset.from_list(
        [{"input_ids": row, "num_bytes": LENGTH, "document_ids": [index] * LENGTH} for index, row in enumerate(rows)]
    ).save_to_disk(str(folder / "rows" / "train"))
    documents = [{"text": TEXT[start:] + TEXT * 2} for start in range(0, 60, 10)]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return folder


def test_the_record_says_what_the_models_say(
    study: ModuleType, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["over_training.py", "--eem", runs / "eem", "--causal", runs / "causal", "--prepared", runs / "rows"]
    words += ["--data", runs / "held_out.jsonl", "--output", tmp_path, "--until-step", "4"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    study.main()
    record = json.loads((tmp_path / "over-training.json").read_text())
    assert [point["step"] for point in record["points"]["EEM"]] == [1, 2, 4]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    rows = []
    for line in (runs / "held_out.jsonl").read_text().splitlines()[:: study.ON_THE_WAY]:
        ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        rows += [ids[start : start + LENGTH - 1] for start in range(0, len(ids), LENGTH - 1)]
    for name, build in (("eem", EEMForCausalLM), ("causal", MaskedMixerForCausalLM)):
        model = build.from_pretrained(runs / name / "checkpoint-4").eval()
        model.config.code_dtype = None
        total = 0.0
        with torch.no_grad():
            for row in rows:
                ids = torch.tensor([[tokenizer.bos_token_id, *row]])
                total += model(input_ids=ids, labels=ids).loss.item() * len(row)
        point = record["points"]["EEM" if name == "eem" else name][-1]
        assert point["nats"] == pytest.approx(total / sum(map(len, rows)), abs=1e-4)
        assert point["tokens"] == 4000
    eem = record["points"]["EEM"][-1]
    assert eem["4 bits"] - eem["nats"] == pytest.approx(4 * 4 * math.log(2) / LENGTH)
    assert eem["another's code"] != eem["nats"]
    assert (tmp_path / "over-training.png").stat().st_size > 10_000
    documents = record["documents"]
    file_bytes = (runs / "held_out.jsonl").stat().st_size - 6 * len('{"text": ""}\n')
    assert len(documents["bytes"]) == 6 and sum(documents["bytes"]) == file_bytes
    assert f"{sum(documents['causal']) / sum(documents['bytes']):.3f}" in (tmp_path / "over-training.md").read_text()

    words[3:5] = ["--beside", tmp_path / "over-training.json"]
    monkeypatch.setattr(sys, "argv", list(map(str, [*words, "--name", "beside"])))
    study.main()
    beside = json.loads((tmp_path / "beside.json").read_text())
    assert beside["points"] == record["points"]
    assert beside["documents"] == {name: bits for name, bits in documents.items() if name != "causal"}
    monkeypatch.setattr(sys, "argv", list(map(str, [*words, "--data", runs / "rows/train/state.json"])))
    with pytest.raises(SystemExit, match="measured on held_out.jsonl"):
        study.main()


def test_a_prior_prices_what_it_has_seen(study: ModuleType) -> None:
    """Half of all codes each: one bit a number, not eight; a code never seen costs more, and never infinity."""
    codes = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (20_000, 3)).astype(np.float32))
    bits = study.prior_bits(codes, codes, "float8_e4m3fn")
    # The prior smooths over neighbours, [1/4, 1/2, 1/4]: a number that is seen gets half of its share, so a bit more.
    assert bits.mean() == pytest.approx(3 * 2, abs=0.1)
    unseen = study.prior_bits(codes, torch.full((1, 3), 0.01), "float8_e4m3fn")
    assert np.isfinite(unseen).all() and unseen.mean() > 3 * 8


def test_lines_through_known_curves(study: ModuleType) -> None:
    import over_training_report as report

    tokens = [1e6, 2e6, 4e6, 8e6]
    straight = [(t, 5.0 - 0.1 * t / 1e6) for t in tokens]
    logarithmic = [(t, 5.0 - 0.3 * math.log(t / 1e6)) for t in tokens]
    table = report._fit_table({"straight": straight, "logarithmic": logarithmic})
    slopes = {row[:2]: (row[2], row[4]) for row in table.rows}
    assert slopes["straight", "linear"] == pytest.approx((-0.1, 1.0))
    assert slopes["logarithmic", "log-linear"] == pytest.approx((-0.3, 1.0))
    assert slopes["logarithmic", "linear"][1] < 0.95
