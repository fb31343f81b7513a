"""eem-data: text into tokenizers and rows.

eem-data tokenizer --data train.parquet more.jsonl --vocab-size 8000 --output tokenizer
eem-data prepare --data train.parquet more.jsonl --tokenizer tokenizer --output rows
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tokenizers
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from eem.console import ListOptionsCommand, one_line_errors
from eem.prepare import prepare
from modeling_eem.data import Document, count_tokens, read_documents, train_tokenizer
from modeling_eem.files import write_atomically
from modeling_eem.report import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


app.command(cls=ListOptionsCommand)(prepare)


@app.callback()
def main() -> None:
    """Turn text into tokenizers and rows."""


@app.command(cls=ListOptionsCommand)
def tokenizer(
    data: Annotated[list[Path], typer.Option(help=".txt, .jsonl (either may be .gz) and .parquet files to train on.")],
    output: Annotated[Path, typer.Option(help="Folder for the tokenizer's files.")],
    validation: Annotated[
        list[Path] | None, typer.Option(help="Files to report characters and bytes per token of.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Tokens, the special ones included.")] = 8000,
    text_column: Annotated[str, typer.Option(help="Column of .jsonl and .parquet files.")] = "text",
) -> None:
    """Train a byte-level BPE tokenizer.

    Writes what `AutoTokenizer.from_pretrained` loads, and `statistics.json`. The same files in the same order give the
    same tokenizer.

    Example: `eem-data tokenizer --data train.parquet --validation held_out.parquet --output tokenizer`
    """
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}"), TimeElapsedColumn()
    with one_line_errors(), Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file: name a folder for --output.")
        held_out = {name: read_documents([path], text_column) for name, path in _names(validation or [])}
        texts = _counted(read_documents(data, text_column), progress, "training on documents")
        trained = train_tokenizer(texts, vocab_size)
        counts = {
            name: count_tokens(trained, _counted(documents, progress, f"measuring {name}"))
            for name, documents in held_out.items()
        }
        held_out_counts = {name: asdict(count) for name, count in counts.items()}
        _save(trained, output, {"tokenizers": tokenizers.__version__, "held_out": held_out_counts})
    table = Table(
        columns=("text", "characters a token", "bytes a token"),
        rows=[(name, count.characters_per_token, count.bytes_per_token) for name, count in counts.items()],
        title=f"{len(trained):,} tokens in {output}",
        formats={"characters a token": ".3f", "bytes a token": ".3f"},
    )
    Console().print(table if counts else f"{len(trained):,} tokens in {output}")


def _names(paths: list[Path]) -> list[tuple[str, Path]]:
    """Each file with its name; with its whole path if another has the same name."""
    names = [path.name for path in paths]
    return [(path.name if names.count(path.name) == 1 else str(path), path) for path in paths]


def _counted(documents: Iterable[Document], progress: Progress, description: str) -> Iterator[str]:
    """The documents' texts, counted as they pass."""
    task = progress.add_task(description)
    for document in documents:
        progress.advance(task)
        yield document.text


def _save(trained: PreTrainedTokenizerBase, output: Path, statistics: dict[str, object]) -> None:
    """All files or none: they are written to a folder beside `output`, then moved over the old ones."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        trained.save_pretrained(folder)
        write_atomically(Path(folder) / "statistics.json", json.dumps(statistics, indent=2) + "\n")
        output.mkdir(exist_ok=True)
        for file in Path(folder).iterdir():
            os.replace(file, output / file.name)


if __name__ == "__main__":
    app()
