from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from modeling_eem.report import Table, add_to_card, check_card, model_card

PARTS = {
    "title": "eem-quickstart",
    "summary": "A small model; `a < b & c`.",
    "usage": "\nmodel = AutoModelForCausalLM.from_pretrained('.')\n",
    "results": Table(["model", "bits per byte"], [["EEM", 2.05]]),
    "training": Table(["what", "value"], [["rows", 1200]]),
    "limits": ["Too small to be useful."],
}


def test_card_has_front_matter_and_every_part() -> None:
    data = ModelCardData(license="apache-2.0", language="en", library_name="transformers", tags=["eem"])
    text = str(model_card(data, figures={"Learning curves": "curves.png"}, **PARTS))
    assert text.startswith("---\nlanguage: en\n")
    for part in (
        "# eem-quickstart\n\nA small model; `a < b & c`.\n\n## Use",
        "```python\nmodel = AutoModelForCausalLM.from_pretrained('.')\n```",
        "| EEM   |         2.050 |",
        "![Learning curves](curves.png)",
        "| rows | 1,200 |",
        "- Too small to be useful.\n\n## Sources",
    ):
        assert part in text
    read = ModelCard(text)
    assert read.data.to_dict() == data.to_dict()


def test_card_without_figures_has_no_gaps() -> None:
    text = str(model_card(ModelCardData(license="apache-2.0"), **PARTS))
    assert "![" not in text and "\n\n\n" not in text


def test_a_card_needs_limits() -> None:
    with pytest.raises(ValueError, match="limits"):
        model_card(ModelCardData(), **{**PARTS, "limits": []})


ORIGIN = {"command": "evaluate.py", "date": "today", "commit": "abc", "versions": "Python 3", "machine": "Linux"}


def test_tables_are_added_to_the_results_once(tmp_path: Path) -> None:
    made = str(model_card(ModelCardData(license="apache-2.0"), figures={"curves": "curves.png"}, **PARTS))
    (tmp_path / "README.md").write_text(made)
    check_card(tmp_path)
    add_to_card(tmp_path, "speed", [Table(["rows"], [[7]])], ORIGIN)
    for value in (0.25, 0.75):
        tables = [Table(["model", "acc"], [["a \\1 b", value]], title="Benchmarks"), Table(["b"], [[1]])]
        add_to_card(tmp_path, "harness", tables, ORIGIN)
    text = (tmp_path / "README.md").read_text()
    results = text[text.index("## Results") : text.index("## Training")]
    assert "bits per byte" in results and "![curves](curves.png)" in results and "| rows |" in results
    assert results.count("**Benchmarks**") == 1 and "0.750" in results and "0.250" not in results
    assert "| a \\1 b |" in results and results.count("`evaluate.py`; today, abc, Python 3, Linux.") == 2
    assert "\n\n\n" not in text and text.endswith("\n") and not text.endswith("\n\n")
    start, end = made.index("## Results"), made.index("## Training")
    assert text.startswith(made[: end - 1]) and text.endswith(made[end:].rstrip() + "\n") and start > 0
    assert ModelCard(text).data.to_dict() == ModelCard(made).data.to_dict()


def test_results_may_be_a_cards_last_section(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A model\n\n## Results\n")
    for _ in range(2):
        add_to_card(tmp_path, "harness", [Table(["a"], [[1]])], ORIGIN)
    assert (tmp_path / "README.md").read_text().count("|   a |") == 1


def test_a_card_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model card"):
        check_card(tmp_path)
    (tmp_path / "README.md").write_text("# A model\n")
    with pytest.raises(ValueError, match="no section '## Results'"):
        check_card(tmp_path)
