"""The tables, with the notes without which they mislead."""

import math
from dataclasses import replace

import pytest

from modeling_eem.evaluation.harness_scores import ModelScores, Score, TaskScores
from modeling_eem.evaluation.harness_tables import benchmark_table, differences_table, summary_tables, task_table
from modeling_eem.evaluation.harness_tasks import COLUMNS


def _made_up(name: str, model_type: str = "llama", adapter: str = "CausalHarnessModel") -> ModelScores:
    """Task number i scored i / 100 ± i / 1000."""
    tasks = [(column, task) for column in COLUMNS for task in column.tasks(is_offline=True)]
    scored = {
        task: TaskScores(
            "1.0", 0, 500, 500, 0, 0, {column.metric_of(task): Score(i / 100, i / 1000)}, task == "wikitext"
        )
        for i, (column, task) in enumerate(tasks)
    }
    return ModelScores(name, model_type, adapter, 10, 512, "float32", 1, scored)


def test_a_table_shows_scores_errors_and_caveats() -> None:
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
    notes = benchmark_table([causal, replace(causal, name="other"), _made_up("third")], is_offline=True).notes
    assert [note for note in notes if "gsm8k 7" in note][0].startswith("causal, other: of a context of 512 tokens")


def test_differences_are_from_the_first_model() -> None:
    first, second, third = (_made_up(name) for name in ("first", "second", "third"))
    rows = {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}
    swag = {"acc,none": Score(0.5, 0.2, rows)}, {"acc,none": Score(0.75, 0.2, rows | {0: 1.0})}
    first = replace(first, tasks=first.tasks | {"swag": replace(first.tasks["swag"], metrics=swag[0])})
    second = replace(second, tasks=second.tasks | {"swag": replace(second.tasks["swag"], metrics=swag[1])})
    table = differences_table([first, second, third], is_table=True, is_offline=True, resamples=10)
    assert [row[0] for row in table.rows] == ["second"] * len(COLUMNS) + ["third"] * len(COLUMNS)
    assert [row[1] for row in table.rows[: len(COLUMNS)]] == [column.name for column in COLUMNS]
    assert table.columns[3] == "less first"
    # One of four rows differs by 1: a mean of 1/4, a standard deviation of 1/2.
    assert table.rows[1] == ("second", "SWAG", 0.75, 0.25, pytest.approx(0.25), pytest.approx(1.0))
    assert "row by row" in table.notes[0] and "by 10 draws" in table.notes[0] and "lower" in table.notes[-1]
    table = differences_table([first, second], is_table=True, is_offline=True, resamples=0)
    assert {row[4] for row in table.rows} == {None} and len(table.notes) == 1


def test_differences_of_other_tasks_are_in_all_their_metrics() -> None:
    own = TaskScores("1.0", 0, 4, 4, 0, 0, {"f1,none": Score(0.5, 0.1), "acc,none": Score(0.25, 0.1)})
    models = [replace(model, tasks=model.tasks | {"own": own}) for model in (_made_up("one"), _made_up("two"))]
    lines = [row[1] for row in differences_table(models, is_table=True, is_offline=True, resamples=10).rows]
    assert lines == [*(column.name for column in COLUMNS), "own f1", "own acc"]
    lines = [row[1] for row in differences_table(models, is_table=False, is_offline=True, resamples=10).rows]
    assert lines[0] == "wikitext bits_per_byte" and lines[-2:] == ["own f1", "own acc"]


def test_where_an_encoder_saw_bos_alone_every_table_marks_it() -> None:
    causal, eem = _made_up("causal"), _made_up("code", "eem", "EEMHarnessModel")
    table = task_table([causal, eem])
    assert [row[:3] for row in table.rows if "*" in str(row)] == [("code", "wikitext*", "bits_per_byte")]
    assert "with * BOS alone" in table.notes[0]
    for is_table in (True, False):
        table = differences_table([causal, eem], is_table, is_offline=True, resamples=10)
        assert [row[1] for row in table.rows if "*" in str(row)] == [table.rows[0][1]]
        assert any("With * an entropy" in note for note in table.notes)
    assert "*" not in str([task_table([causal]), differences_table([causal, causal], True, True, 10)])


def test_solved_examples_are_told() -> None:
    made = _made_up("one")
    made = replace(made, tasks=made.tasks | {"gsm8k": replace(made.tasks["gsm8k"], num_fewshot=5)})
    assert "Solved examples in each prompt: gsm8k 5; none in the others'." in task_table([made]).notes


def test_what_a_card_shows() -> None:
    models = [_made_up("one"), _made_up("two")]
    titles = [table.title for table in summary_tables(models, is_table=True, is_offline=True, resamples=10)]
    assert titles == ["Benchmarks", "Differences"]
    titles = [table.title for table in summary_tables(models[:1], is_table=False, is_offline=True, resamples=10)]
    assert titles == ["All metrics"]
