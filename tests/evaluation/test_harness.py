"""Scores, their standard errors, and the table with the notes without which it misleads."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from modeling_eem import EEMAutoencoderConfig
from modeling_eem.bits import nats_to_bits
from modeling_eem.data import CausalCollator, RowFormat, encode_text, windows
from modeling_eem.evaluation import held_out_code_length
from modeling_eem.evaluation.harness import (
    HarnessOptions,
    ModelScores,
    Score,
    TaskScores,
    benchmark_table,
    harness_json,
    open_models,
    ratio_standard_error,
    score_models,
    score_task,
    task_table,
)
from modeling_eem.evaluation.harness_models import CausalHarnessModel
from modeling_eem.evaluation.harness_tasks import COLUMNS, load_tasks

TASKS = ["wikitext", "arc_easy", "lambada_openai", "gsm8k"]
CONTEXT = 128


def _ignore(*values: object) -> None:
    pass


@pytest.fixture(scope="module")
def scores(harness_model: Callable[..., Path], harness_data: Path) -> list[ModelScores]:
    models = open_models([harness_model("masked_mixer", CONTEXT), harness_model("eem", CONTEXT)])
    return score_models(models, load_tasks(TASKS, harness_data), HarnessOptions(), _ignore, _ignore)


def test_every_model_is_scored_on_every_task(scores: list[ModelScores]) -> None:
    assert [model.model_type for model in scores] == ["masked_mixer", "eem"]
    assert [model.adapter for model in scores] == ["CausalHarnessModel", "EEMHarnessModel"]
    for model in scores:
        assert list(model.tasks) == TASKS and model.max_length == CONTEXT and model.dtype == "float32"
        assert {task: entry.num_fewshot for task, entry in model.tasks.items()} == dict(zip(TASKS, [0, 0, 0, 5]))
        for column in COLUMNS:
            for task in set(column.yamls) & set(TASKS):
                entry = model.tasks[task]
                assert entry.num_rows == entry.num_rows_available == 6
                assert entry.metrics[column.metric_of(task)].standard_error is not None
    # Five solved examples and 256 tokens of an answer do not fit 128 tokens.
    assert scores[0].tasks["gsm8k"].truncated_prompts == scores[0].tasks["gsm8k"].shortened_answers == 6
    assert scores[0].tasks["arc_easy"].truncated_prompts == 0


def test_wikitexts_bits_per_byte_are_the_held_out_code_length(
    harness_model: Callable[..., Path], harness_data: Path
) -> None:
    """Of pages that fit a window each, and that detokenising leaves alone: then both score the same tokens of the
    same bytes. Ours also charges what lm-eval does not, each short window's length."""
    model = CausalHarnessModel(str(harness_model("llama", CONTEXT)))
    task = load_tasks(["wikitext"], harness_data)["wikitext"]
    row_format = RowFormat.from_tokenizer(model.tokenizer, CONTEXT)
    documents = enumerate(encode_text(model.tokenizer, page) for page in task.eval_docs["page"])
    rows = list(windows(documents, row_format))
    assert len(rows) == 6
    length = held_out_code_length(model.model, rows, CausalCollator(1, len(model.tokenizer), CONTEXT))
    scored = score_task(model, task, HarnessOptions()).metrics["bits_per_byte,none"]
    assert scored.value == pytest.approx(nats_to_bits(length.nll_nats) / length.num_bytes, rel=1e-6)
    assert length.bits_per_byte == pytest.approx(scored.value + 6 * math.log2(CONTEXT) / length.num_bytes, rel=1e-6)


def test_limit_and_batch_size(harness_model: Callable[..., Path], harness_data: Path) -> None:
    model = CausalHarnessModel(str(harness_model("masked_mixer", CONTEXT)))
    task = load_tasks(["lambada_openai"], harness_data)["lambada_openai"]
    limited = score_task(model, task, HarnessOptions(limit=1))
    assert (limited.num_rows, limited.num_rows_available) == (1, 6)
    assert all(
        score.standard_error in (None, 0) or math.isnan(score.standard_error) for score in limited.metrics.values()
    )
    without = score_task(model, task, HarnessOptions(bootstrap_iters=0))
    assert {score.standard_error for score in without.metrics.values()} == {None}


def test_the_standard_error_of_a_ratio_is_the_bootstraps() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.uniform(50, 500, 60)
    bits = sizes * generator.normal(2, 0.3, 60)
    picks = generator.integers(0, 60, (4000, 60))
    bootstrap = (bits[picks].sum(1) / sizes[picks].sum(1)).std()
    assert ratio_standard_error(bits.tolist(), sizes.tolist()) == pytest.approx(bootstrap, rel=0.05)
    assert ratio_standard_error([1.0], [2.0]) is None


def _made_up(name: str, model_type: str = "llama", adapter: str = "CausalHarnessModel") -> ModelScores:
    """Task number i scored i / 100 ± i / 1000."""
    tasks = [(column, task) for column in COLUMNS for task in column.tasks(is_offline=True)]
    scored = {
        task: TaskScores("1.0", 0, 500, 500, 0, 0, {column.metric_of(task): Score(i / 100, i / 1000)})
        for i, (column, task) in enumerate(tasks)
    }
    return ModelScores(name, model_type, adapter, 10, 512, "float32", scored)


def test_the_table() -> None:
    causal, eem = _made_up("causal"), _made_up("code", "eem", "EEMHarnessModel")
    cut = replace(causal.tasks["gsm8k"], truncated_prompts=7, num_rows=100)
    short = replace(causal.tasks["ifeval"], shortened_answers=9)
    causal = replace(causal, tasks=causal.tasks | {"gsm8k": cut, "ifeval": short})
    table = benchmark_table([causal, eem], is_offline=True)
    assert list(table.columns) == ["model", *(column.name for column in COLUMNS)]
    by_name = dict(zip(table.columns, table.rows[0]))
    assert by_name["SWAG"] == "0.0100 ± 0.0010" and by_name["HellaSwag"] == "0.0200 ± 0.0020"
    # Tasks 5 to 10 are GLUE's: cola, mrpc, qnli, rte, sst2, wnli.
    error = math.sqrt(sum(i**2 for i in range(5, 11))) / 1000 / 6
    assert by_name["GLUE"] == f"0.0750 ± {error:.4f}"
    assert not by_name["Wikitext BPB"].endswith("*") and table.rows[1][1].endswith("*")
    assert dict(zip(table.columns, table.rows[2]))["GLUE"] == "3,000"
    notes = " ".join(table.notes)
    assert "the mean of cola, mrpc, qnli, rte, sst2, wnli. mnli and qqp are left out" in notes
    assert "prompts that lost their beginning: gsm8k 7." in notes
    assert "at most 256 tokens, half the context, where the task gives more: ifeval 9." in notes
    assert "gsm8k 100 of 500" in notes and "with * BOS alone" in notes
    assert "encoder" not in " ".join(benchmark_table([causal], is_offline=True).notes)


def test_an_eem_scored_by_another_model_gets_no_row() -> None:
    with pytest.raises(ValueError, match="code is an entropy estimation model and was scored through HFLM"):
        _made_up("code", "eem", "HFLM")


def test_json_holds_what_a_record_needs(scores: list[ModelScores]) -> None:
    options = HarnessOptions(limit=6)
    content = json.loads(harness_json(scores, [task_table(scores)], options, "data/hub"))
    assert content["options"] == {
        "batch_size": 8,
        "max_length": None,
        "limit": 6,
        "bootstrap_iters": 200,
        "dtype": "auto",
    }
    assert {"command", "commit", "machine", "date"} < set(content["provenance"]) and content["data"] == "data/hub"
    assert "lm-eval 0." in content["provenance"]["versions"] and "torch 2." in content["provenance"]["versions"]
    entry = content["models"][0]["tasks"]["arc_easy"]
    assert entry["num_rows"] == 6 and set(entry["metrics"]["acc,none"]) == {"value", "standard_error"}
    assert content["tables"][0]["rows"][0]["task"] == "wikitext"


@pytest.fixture
def checkpoint(harness_model: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(harness_model("masked_mixer"), tmp_path / "model"))


def _without(pattern: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for file in list(folder.glob(pattern)):
            file.unlink()

    return remove


def _bigger_tokenizer(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)


def _no_eos(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "holds no model"),
        (_without("*.safetensors"), "holds no weights"),
        (_without("tokenizer*.json"), "holds no tokenizer: put it there with tokenizer.save_pretrained"),
        (_bigger_tokenizer, "the tokenizer has 30. tokens and the model 300"),
        (_no_eos, "needs a BOS and an EOS"),
        (lambda folder: EEMAutoencoderConfig().save_pretrained(folder), "'eem_autoencoder', which is no causal"),
    ],
    ids=["no folder", "no weights", "no tokenizer", "bigger tokenizer", "no EOS", "autoencoder"],
)
def test_folders_that_cannot_be_scored(break_it: Callable[[Path], None], message: str, checkpoint: Path) -> None:
    break_it(checkpoint)
    with pytest.raises(ValueError, match=message):
        open_models([checkpoint])


def test_contexts_must_agree(harness_model: Callable[..., Path]) -> None:
    paths = [harness_model("masked_mixer"), harness_model("masked_mixer", CONTEXT)]
    with pytest.raises(ValueError, match="contexts differ .*-16 16, .*-128 128.*--max-length 16"):
        open_models(paths)
    assert [model.name for model in open_models(paths, max_length=16)] == ["masked_mixer-16", "masked_mixer-128"]
    with pytest.raises(ValueError, match="--max-length 17 is longer than a model's context"):
        open_models(paths, max_length=17)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"limit": -1}, "limit"), ({"dtype": "int9"}, "dtype")],
)
def test_options(option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HarnessOptions(**option)
