"""Model cards: what a checkpoint is, how to load it, what it scored, and where it should not be trusted."""

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCard, ModelCardData

from modeling_eem.report.files import render
from modeling_eem.report.tables import Table


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
    """Fill the card template; `write_atomically(folder / "README.md", str(card))` puts it beside the checkpoint.

    Args:
        card_data: the YAML front matter: licence, language, data sets, tags.
        title: the card's heading, usually the model's name.
        summary: a paragraph in Markdown: what the model is and what it was trained on.
        usage: Python code that loads the checkpoint and does the obvious thing with it.
        results: the numbers, the code's bits included, where the model loses too.
        training: what was trained on what for how long.
        limits: one sentence each on what the model cannot do.
        figures: caption → path relative to the card.

    Raises:
        ValueError: without any limit: every model has some.
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
