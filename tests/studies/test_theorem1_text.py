"""Theorem 1 on text: documents are split without overlap, every teacher gives values, every method runs once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas
import pytest
from transformers import AutoTokenizer

from modeling_eem import EEMForCausalLM
from modeling_eem.entropy import ExactEntropy


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "studies" / "losses_on_text")
        import theorem1_text

        patch.setattr(theorem1_text, "KINDS", {"sums": (0.75, 3, 5), "words": (0.25, 2, 4)})
        patch.setattr(theorem1_text, "EPOCHS", {4: 2, 8: 2})
        patch.setattr(theorem1_text, "POINTS", 2)
        patch.setattr(theorem1_text, "RATES", (1e-3, 4e-3))
        # Every loss with one teacher, and every teacher with one loss.
        patch.setattr(
            theorem1_text,
            "METHODS",
            [each for each in theorem1_text.METHODS if each.entropies in ("", "larger") or each.loss == "complement"],
        )
        yield theorem1_text


@pytest.fixture(scope="module")
def documents(study: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    kinds = {"sums": "{a} apples and {b} pears are {c}", "words": "the fox jumps {a} times and {b} times, {c} in all"}
    frame = pandas.DataFrame(
        {"text": text.format(a=a, b=b, c=a + b), "source": kind}
        for kind, text in kinds.items()
        for a in range(10)
        for b in range(10)
    )
    held_out = frame["text"].index % 10 == 3
    frame[~held_out].to_parquet(folder / "train.parquet")
    frame[held_out].to_parquet(folder / "held_out.parquet")
    study.write_documents(folder / "train.parquet", [folder / "held_out.parquet"], folder, teacher_bytes=500)
    return folder


def test_no_document_is_in_two_parts_and_samples_keep_the_shares(study: ModuleType, documents: Path) -> None:
    parts = {
        name: study.read_documents(documents / f"{name}.jsonl")
        for name in ("teacher", "students", "validation", "test")
    }
    texts = [each["text"] for part in parts.values() for each in part]
    assert len(texts) == len(set(texts))
    assert [len(parts[name]) for name in ("students", "validation", "test")] == [6 * 8, 5, 9]
    samples = [study.student_texts(parts["students"], sample, 8) for sample in range(study.STUDENTS)]
    assert len({text for sample in samples for text in sample}) == 6 * 8
    assert [sum("fox" in text for text in sample) for sample in samples] == [2] * 6
    smaller = study.student_texts(parts["students"], 1, 4)
    assert len(smaller) == 4 and set(smaller) < set(samples[1])


def test_an_eem_reads_windows_of_its_own_length(study: ModuleType, harness_model: Callable[..., Path]) -> None:
    llama, eem = harness_model("llama", 64), harness_model("eem")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    teachers = study.Teachers(llama, llama, eem, tokenizer)
    assert teachers.window == 16
    row = [tokenizer.bos_token_id, *range(10, 10 + 17)]
    values = teachers.values("eem", [row, row[:3]])
    model = EEMForCausalLM.from_pretrained(eem).eval()
    windows = [row[:16], [row[0], *row[16:]], row[:3]]
    expected = study.surprisals(ExactEntropy(model), windows)
    assert values == [pytest.approx(expected[0] + expected[1]), pytest.approx(expected[2])]
    # The same model as its own teacher: what is carried over by bytes is what it says itself.
    text = study.Sample.of(["apples and pears are the same to a fox"], tokenizer)
    np.testing.assert_allclose(teachers.values("other", text.rows), teachers.values("larger", text.rows), atol=1e-4)


def test_every_method_runs_once(
    study: ModuleType, documents: Path, harness_model: Callable[..., Path], tmp_path: Path
) -> None:
    given = {
        "documents": documents,
        "larger": harness_model("llama", 64),
        "other": harness_model("llama", 64),
        "eem": harness_model("eem"),
        "output": tmp_path / "out",
        "records": tmp_path / "record",
        "seeds": 1,
        "sizes": [4],
    }
    study.run(**given)
    file = tmp_path / "out" / "results.json"
    runs = json.loads(file.read_text())["runs"]
    ended = [runs[f"{method.name}, 4 #0"] for method in study.METHODS]
    names = ["cross_entropy", "distillation, larger", "label_smoothing", "focal", "mile"]
    names += [f"complement, {teacher}" for teacher in ("larger", "eem", "occlusion")]
    assert len({json.dumps(runs[f"{name}, 4 #0"]["end"]) for name in names}) == len(names)
    assert all(run["validation"][run["stop"] - 1] == min(run["validation"]) for run in ended)
    assert runs["4, rate"] in study.RATES
    record = tmp_path / "record"
    assert (record / "theorem1-text.png").read_bytes().startswith(b"\x89PNG")
    assert "complement" in (record / "theorem1-text.md").read_text()
    before = file.read_bytes()
    study.run(**given)
    assert file.read_bytes() == before


def test_differences_of_seeds_and_documents(study: ModuleType) -> None:
    """A constant difference has no width; noise around none is not told apart."""
    from text_runs import difference

    control = np.random.default_rng(0).normal(100, 10, size=(5, 40))
    exact = difference((control - 8).tolist(), control.tolist(), [80] * 40)
    assert (exact.mean, exact.low, exact.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert exact.p == pytest.approx(2 / 10_001)
    noise = np.random.default_rng(1).normal(0, 1, size=(5, 40))
    none = difference((control + noise - noise.mean()).tolist(), control.tolist(), [80] * 40)
    assert none.low < 0 < none.high and none.p > 0.5
