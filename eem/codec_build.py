"""eem codec build: an integer codec model from a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from eem.console import check_output, one_line_errors, progress_bar, quiet_loading, waiting


@one_line_errors()
def build(
    model: Annotated[
        Path,
        typer.Option(help="Folder of a causal masked mixer, or of an EEM with such a decoder, and its tokenizer."),
    ],
    calibration: Annotated[
        list[Path],
        typer.Option(help="About 100 kB of text like the text to compress: .txt, .jsonl, .parquet."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the codec model, new or empty.")],
    text_column: Annotated[str, typer.Option(help="Column of .jsonl and .parquet files.")] = "text",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace a codec model in --output; its files need it to be decoded.")
    ] = False,
) -> None:
    """Turn a trained model into a codec model: integer weights and tables, which every machine decodes alike.

    Prints the cost of the calibration text by the integer model and by the float model; an EEM's codes are left out.

    Example: `eem codec build --model runs/causal --calibration notes.txt --output codec`
    """
    check_output(output)
    _check_is_free(output, force)
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} holds no model: name a folder with config.json, as save_pretrained writes it.")
    with waiting("building the codec model"):
        from modeling_eem.codec import build_integer_model, compare_bits
        from modeling_eem.data import read_documents
        from modeling_eem.files import folder_at_once
        from modeling_eem.loading import load_model, load_tokenizer

        quiet_loading()
        texts = [document.text for document in read_documents(calibration, text_column)]
        loaded, tokenizer = load_model(model), load_tokenizer(model)
        built = build_integer_model(loaded, tokenizer, texts)
    with progress_bar("comparing windows") as steps:
        bits = compare_bits(loaded, built, texts, lambda done, total: steps.update(done, total=total))
    with folder_at_once(output) as folder:
        built.save_pretrained(folder)
    num_bytes = sum(len(text.encode()) for text in texts)
    typer.echo(
        f"{output}: codec model {built.id[:16]}; on the calibration text {bits.integer_bits / num_bytes:.4f} bits a "
        f"byte in integers, {bits.float_bits / num_bytes:.4f} in float ({100 * (bits.ratio - 1):+.2f} %)"
        + (", both without codes" if built.has_code else "")
    )


def _check_is_free(output: Path, force: bool) -> None:
    """ValueError for a folder that holds anything but, by force, a codec model."""
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / "codec.json").is_file():
        raise ValueError(f"{output} is not empty, and holds no codec model: name a new or an empty folder.")
    if not force:
        raise ValueError(f"{output} holds a codec model already: -f replaces it.")
