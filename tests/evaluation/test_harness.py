"""Models through lm-eval's tasks, and the folders that are refused before."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from modeling_eem import EEMAutoencoderConfig
from modeling_eem.bits import nats_to_bits
from modeling_eem.data import CausalCollator, RowFormat, encode_text, windows
from modeling_eem.evaluation import held_out_code_length
from modeling_eem.evaluation.harness import (
    _RandomOfProcess,
    check_lengths,
    check_rows,
    open_models,
    score_models,
    score_task,
)
from modeling_eem.evaluation.harness_models import CausalHarnessModel
from modeling_eem.evaluation.harness_scores import HarnessOptions, ModelScores
from modeling_eem.evaluation.harness_tasks import COLUMNS, load_tasks

TASKS = ["wikitext", "arc_easy", "lambada_openai", "gsm8k"]
CONTEXT = 128


def _ignore(*values: object) -> None:
    pass


@pytest.fixture(scope="module")
def scores(harness_model: Callable[..., Path], harness_data: Path) -> list[ModelScores]:
    models = open_models([harness_model("masked_mixer", CONTEXT), harness_model("eem", CONTEXT)])
    return list(score_models(models, load_tasks(TASKS, harness_data), HarnessOptions(), _ignore, _ignore))


def test_scoring_leaves_the_environment_as_it_was(scores: list[ModelScores]) -> None:
    assert scores and "DISABLE_MULTIPROC" not in os.environ


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
    side_bits = 6 * (1 + math.log2(CONTEXT - 1))  # whether a window is full, and how long a shorter one is
    assert length.bits_per_byte == pytest.approx(scored.value + side_bits / length.num_bytes, rel=1e-6)


def test_a_value_is_what_its_rows_aggregate_to(scores: list[ModelScores]) -> None:
    for model in scores:
        for entry in model.tasks.values():
            for score in entry.metrics.values():
                assert sorted(score.rows) == list(range(6))
                assert score.aggregate([score.rows[row] for row in range(6)]) == pytest.approx(score.value)


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


def test_an_answer_that_does_not_fit_is_found_before_scoring(
    harness_model: Callable[..., Path], harness_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(harness_data, tmp_path / "hub"))
    choices = {"text": ["the rain " * 20, "home"], "label": ["A", "B"]}
    lines = [{"question": "What fell?", "choices": {"text": ["rain", "home"], "label": ["A", "B"]}, "answerKey": "A"}]
    lines.append(lines[0] | {"choices": choices})
    (data / "allenai/ai2_arc/ARC-Easy/test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    models, tasks = open_models([harness_model("masked_mixer")]), load_tasks(["gsm8k", "arc_easy", "wikitext"], data)
    message = r"task arc_easy: a continuation of \d+ tokens does not fit a context of 16: leave this task out"
    with pytest.raises(ValueError, match=f"^{message}"):
        check_lengths(models, tasks, HarnessOptions())
    with pytest.raises(ValueError, match=f"^masked_mixer-16, {message}"):
        list(score_models(models, {"arc_easy": tasks["arc_easy"]}, HarnessOptions(), _ignore, _ignore))
    check_lengths(models, tasks, HarnessOptions(limit=1))  # the long one is not scored
    check_lengths(open_models([harness_model("masked_mixer", CONTEXT)]), tasks, HarnessOptions())


def test_every_process_needs_a_row_of_every_task(harness_data: Path) -> None:
    tasks = load_tasks(["arc_easy", "wikitext"], harness_data)
    check_rows(tasks, None, 6)
    check_rows(tasks, 100, 6)
    message = "task arc_easy scores {} rows and there are {} processes: raise --limit, or start fewer"
    for limit, num_processes, rows in ((None, 7, 6), (2, 3, 2)):
        with pytest.raises(ValueError, match=message.format(rows, num_processes)):
            check_rows(tasks, limit, num_processes)


def test_scoring_prints_nothing_and_does_not_ask_git(
    harness_model: Callable[..., Path],
    harness_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = CausalHarnessModel(str(harness_model("masked_mixer", CONTEXT)))
    tasks = load_tasks(["arc_easy", "lambada_openai"], harness_data)  # lambada's perplexity is bootstrapped
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)  # no repository
    for task in tasks.values():
        score_task(model, task, HarnessOptions(limit=2, bootstrap_iters=1000))
    assert capfd.readouterr() == ("", "")


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


def _cut_short(pattern: str, size: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.write_bytes(file.read_bytes()[:size])

    return cut


def _a_shard_is_missing(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _without_a_tensor(folder: Path) -> None:
    """Which from_pretrained fills with random numbers."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "layers.0" in name)]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "holds no model"),
        (_without("*.safetensors"), "holds no weights"),
        (_cut_short("*.safetensors", 0), "model.safetensors: the weights cannot be read, .*header too small"),
        (_cut_short("*.safetensors", 5000), "model.safetensors: the weights cannot be read"),
        (
            _a_shard_is_missing,
            "lacks some weights: model-00002-of-00002.safetensors of model.safetensors.index.json",
        ),
        (_without_a_tensor, "lacks the weights model.layers.0"),
        (_cut_short("tokenizer.json", 0), "the tokenizer cannot be read"),
        (_cut_short("tokenizer.json", 500), "the tokenizer cannot be read"),
        (_without("tokenizer*.json"), "holds no tokenizer: put it there with tokenizer.save_pretrained"),
        (_bigger_tokenizer, "the tokenizer has 30. tokens and the model 300"),
        (_no_eos, "needs a BOS and an EOS"),
        (lambda folder: EEMAutoencoderConfig().save_pretrained(folder), "'eem_autoencoder', which is no causal"),
    ],
    ids=[
        "no folder",
        "no weights",
        "empty weights",
        "half of the weights",
        "a shard is missing",
        "a tensor is missing",
        "empty tokenizer",
        "half of the tokenizer",
        "no tokenizer",
        "bigger tokenizer",
        "no EOS",
        "autoencoder",
    ],
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


def test_processes_draw_the_examples_that_one_would() -> None:
    """Row i is the `i // world_size`-th of process `i % world_size`, and is shown what one process shows it."""
    alone = random.Random(7)
    expected = [alone.sample(range(50), 3) for _ in range(6)]
    processes = [_RandomOfProcess(7, rank, world_size=3) for rank in range(3)]
    drawn = {rank: [process.sample(range(50), 3) for _ in range(2)] for rank, process in enumerate(processes)}
    assert [drawn[row % 3][row // 3] for row in range(6)] == expected
