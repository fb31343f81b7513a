"""eem data publish: rows as a data set of the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from eem.console import check_output, one_line_errors, waiting


@one_line_errors()
def publish(
    rows: Annotated[Path, typer.Option(help="A folder of `eem data prepare` or `eem entropy`.")],
    output: Annotated[Path, typer.Option(help="New folder for the files of the repository.")],
    repo: Annotated[
        str | None, typer.Option(help="Upload to ORG/NAME; if not given, nothing leaves this machine.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    licence: Annotated[str | None, typer.Option(help="The text's licence, for the card: cc-by-4.0.")] = None,
    language: Annotated[str | None, typer.Option(help="The text's language, for the card: en.")] = None,
) -> None:
    """Write rows as a data set of the Hub, with a card that names the method and the model of their entropies.

    `datasets.load_dataset` reads the folder as it reads the repository. Look at its README.md before you upload it.

    Example: `eem data publish --rows rows-with-entropies --output hub --repo ORG/NAME --licence cc-by-4.0`
    """
    from modeling_eem.entropy.hub_dataset import write_hub_folder
    from modeling_eem.report.licences import licence_doubt

    check_output(output)
    name = repo.rpartition("/")[2] if repo else None
    with waiting(f"reading {rows}"):
        write_hub_folder(rows, output, name=name, location=repo or ".", licence=licence, language=language)
    typer.echo(f"{output}: data, tokenizer and README.md")
    if doubt := licence_doubt(licence):
        typer.echo(doubt, err=True)
    if repo:
        from huggingface_hub import HfApi

        HfApi().create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, repo_type="dataset", folder_path=output, commit_message="Rows and card")
        typer.echo(f"{repo}: uploaded")
