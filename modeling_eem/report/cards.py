"""Model cards: what a checkpoint is, how to load it, what it scored, and where it should not be trusted."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from modeling_eem.files import write_atomically
from modeling_eem.report.provenance import provenance_line
from modeling_eem.report.rendering import render
from modeling_eem.report.tables import Table

_RESULTS = re.compile(r"^## Results\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def model_card(
    card_data: ModelCardData,
    *,
    title: str,
    summary: str,
    usage: str,
    results: Table,
    training: Table,
    limits: Sequence[str],
    figures: Mapping[str, str] | None = None,
) -> ModelCard:
    """Fill the card template. `write_atomically(folder / "README.md", str(card))` puts the card beside a checkpoint.

    Args:
        card_data: the YAML front matter: licence, language, data sets, tags.
        title: the card's heading, usually the model's name.
        summary: a paragraph in Markdown: what the model is and what it was trained on.
        usage: Python code that loads the checkpoint and uses it in the obvious way.
        results: the numbers, including the code's bits, and where the model loses.
        training: what was trained, on what, for how long.
        limits: one sentence each on what the model cannot do.
        figures: caption → path relative to the card.

    Raises:
        ValueError: without limits: every model has some.
    """
    if not limits:
        raise ValueError("limits is empty: name at least one thing that the model should not be used for.")
    return ModelCard(
        render(
            "model_card.md.jinja",
            card_data=card_data.to_yaml(),
            title=title,
            summary=summary,
            usage=usage.strip(),
            results=results.to_markdown().rstrip(),
            training=training.to_markdown().rstrip(),
            limits=limits,
            figures=figures or {},
        )
    )


def check_card(folder: Path) -> None:
    """Check that `add_to_card` can add to a folder's card.

    Raises:
        ValueError: for a missing `README.md`, or one without a section "Results".
    """
    card = folder / "README.md"
    if not card.is_file():
        raise ValueError(f"{folder} has no model card: write {card}, with a section '## Results'.")
    _results(card, card.read_text())


def add_to_card(folder: Path, name: str, tables: Sequence[Table], origin: Mapping[str, str]) -> None:
    """Put tables at the end of the section "Results" of a folder's card. They replace earlier tables of the same name.

    Args:
        name: the tables' name, in invisible comments around them.
        origin: `provenance`, shown below them.

    Raises:
        ValueError: for a card without such a section, see `check_card`.
    """
    path = folder / "README.md"
    card = path.read_text()
    start, end = _results(path, card).span()
    begins, ends = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    others = re.sub(f"{begins}.*?{ends}", "", card[start:end], flags=re.DOTALL).rstrip()
    blocks = [others + "\n", begins, *(table.to_markdown() for table in tables), provenance_line(origin) + "\n", ends]
    write_atomically(path, (card[:start] + "\n".join([*blocks, card[end:]])).rstrip() + "\n")


def _results(path: Path, card: str) -> re.Match[str]:
    found = _RESULTS.search(card)
    if found is None:
        raise ValueError(f"{path} has no section '## Results' to put a table into: add that heading.")
    return found
