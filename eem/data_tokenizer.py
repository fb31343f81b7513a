"""eem data tokenizer: text into a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eem.console import check_output, one_line_errors, progress_bar

if TYPE_CHECKING:
    from modeling_eem.data import Document


@one_line_errors()
def tokenizer(
    data: Annotated[
        list[Path], typer.Option(help=".txt, .jsonl and .json (also .gz, .zst), .parquet, or folders of them.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the tokenizer's files.")],
    validation: Annotated[
        list[Path] | None, typer.Option(help="Files to report characters and bytes per token for.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Number of tokens, special ones included.")] = 8000,
    text_column: Annotated[str, typer.Option(help="Column of .jsonl and .parquet files.")] = "text",
) -> None:
    """Train a byte-level BPE tokenizer.

    Writes the files that `AutoTokenizer.from_pretrained` loads, and `statistics.json`. The same files in the same
    order give the same tokenizer.

    Example: `eem data tokenizer --data train.parquet --validation held_out.parquet --output tokenizer`
    """
    import tokenizers
    from rich.console import Console

    from modeling_eem.data import count_tokens, read_documents, train_tokenizer
    from modeling_eem.files import folder_at_once
    from modeling_eem.report import Table

    check_output(output)
    held_out = {name: partial(read_documents, [path], text_column) for name, path in _names(validation or [])}
    for name, read in held_out.items():  # all of it: what cannot be read is refused before the training
        if not sum(bool(document.text) for document in read()):
            raise ValueError(f"{name}: no text: give at least one document.")
    trained = train_tokenizer(_counted(read_documents(data, text_column), "training on documents"), vocab_size)
    counts = {name: count_tokens(trained, _counted(read(), f"measuring {name}")) for name, read in held_out.items()}
    held_out_counts = {name: asdict(count) for name, count in counts.items()}
    statistics = {"tokenizers": tokenizers.__version__, "held_out": held_out_counts}
    with folder_at_once(output) as folder:
        trained.save_pretrained(folder)
        (folder / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    table = Table(
        columns=("text", "characters a token", "bytes a token"),
        rows=[(name, count.characters_per_token, count.bytes_per_token) for name, count in counts.items()],
        title=f"{len(trained):,} tokens in {output}",
        formats={"characters a token": ".3f", "bytes a token": ".3f"},
    )
    Console().print(table if counts else f"{len(trained):,} tokens in {output}")


def _names(paths: list[Path]) -> list[tuple[str, Path]]:
    """Each file with its name, or with its whole path if another file has the same name."""
    names = [path.name for path in paths]
    return [(path.name if names.count(path.name) == 1 else str(path), path) for path in paths]


def _counted(documents: Iterable[Document], description: str) -> Iterator[str]:
    """The documents' texts, counted as they pass."""
    with progress_bar(description) as steps:
        for document in documents:
            steps.advance()
            yield document.text
