"""The card of a data set of rows, fit for the Hub: what a row holds, and how its entropies were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from huggingface_hub import DatasetCard, DatasetCardData

from modeling_eem.report.rendering import render
from modeling_eem.report.tables import Table

_COLUMNS = {
    "input_ids": "tokens, by the tokenizer in the folder `tokenizer`",
    "attention_mask": "1 for tokens, 0 for padding",
    "document_ids": "the document of each token, by its number in the corpus",
    "num_bytes": "UTF-8 bytes of the row",
    "position_ids": "places within each window of a packed row",
    "labels": "what is predicted; -100 where nothing is",
}


@dataclass(frozen=True, kw_only=True)
class RowsFacts:
    """The facts on the card of a data set of rows: plain values, which the caller has cleared of secrets.

    Attributes:
        name: the card's title.
        location: what the snippet loads: a repository of the Hub, or "." for the card's own folder.
        columns: the columns of a row.
        splits: split → name → count, as the table shows them.
        method, unit: those of `token_entropies`; None for rows without.
        models: the models that measured each column of entropies.
        origin: setting → value, of the rows and of the measurement.
        licence, language: those of the text, by the Hub's names; None leaves them out.
    """

    name: str
    columns: Sequence[str]
    splits: Mapping[str, Mapping[str, float]]
    location: str = "."
    method: str | None = None
    unit: str = "nats"
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None
    language: str | None = None


def dataset_card(facts: RowsFacts) -> DatasetCard:
    """The card as Markdown with front matter, which tells `load_dataset` where each split's files are."""
    configs = [{"split": split, "path": f"data/{split}-*.parquet"} for split in facts.splits]
    data = DatasetCardData(
        language=facts.language,
        license=facts.licence,
        pretty_name=facts.name,
        task_categories=["text-generation"],
        tags=["modeling-eem", *(["token-entropies", facts.method] if facts.method else [])],
        configs=[{"config_name": "default", "data_files": configs}],
    )
    told = dict(_COLUMNS)
    if facts.method:
        told["token_entropies"] = (
            f"one number a token, {facts.unit}, method `{facts.method}`{_by(facts)}; NaN where nothing was scored"
        )
        earlier = [name for name in facts.columns if name.startswith("token_entropies_")]
        told |= {name: f"the same{_by(facts, name)}, an earlier model, the earliest first" for name in earlier}
    names = list(next(iter(facts.splits.values()), {}))
    return DatasetCard(
        render(
            "dataset_card.md.jinja",
            card_data=data.to_yaml(),
            title=facts.name,
            summary=_summary(facts),
            usage=_usage(facts),
            columns=_markdown(Table(("column", "holds"), [(name, told.get(name, "")) for name in facts.columns])),
            counts=_markdown(
                Table(
                    ("split", *names),
                    [(split, *(counts.get(name) for name in names)) for split, counts in facts.splits.items()],
                )
            ),
            origin=_markdown(Table(("setting", "value"), list(facts.origin.items()))),
        )
    )


def _summary(facts: RowsFacts) -> str:
    if not facts.method:
        return "Rows of tokens, made by `eem data prepare` of modeling-eem."
    return (
        f"Rows of tokens, each token with an estimate of its entropy in {facts.unit}: method `{facts.method}`"
        f"{_by(facts)}. "
        "`eem train` of modeling-eem takes them as `train_rows`, and its token losses read the column "
        "`token_entropies`."
    )


def _by(facts: RowsFacts, column: str = "token_entropies") -> str:
    """The words that name a column's models, if they are known."""
    models = facts.models.get(column, ())
    return f" by {', '.join(f'`{name}`' for name in models)}" if models else ""


def _usage(facts: RowsFacts) -> str:
    return (
        "from datasets import load_dataset\n\n"
        f'rows = load_dataset("{facts.location}")\n'
        f'print(rows["{next(iter(facts.splits))}"][0])'
    )


def _markdown(table: Table) -> str:
    return table.to_markdown().rstrip()
