import pytest
from huggingface_hub import ModelCard, ModelCardData

from modeling_eem.report import Table, model_card

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
