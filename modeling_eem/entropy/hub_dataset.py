"""Writes a folder of rows as a data set of the Hub: parquet, the tokenizer, a card that names method and model."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from modeling_eem.data.arrow_files import RESULTS_FILE, TOKENIZER_FOLDER
from modeling_eem.data.fingerprint import FINGERPRINT_FILE, check_fingerprint, read_fingerprint
from modeling_eem.data.row_checksums import CONTENTS_FILE, open_rows, verify_rows
from modeling_eem.data.rows import TOKEN_ENTROPIES
from modeling_eem.entropy.corpus_run import ENTROPIES_FILE
from modeling_eem.files import folder_at_once, read_record, sha256, without_secrets
from modeling_eem.loading import load_tokenizer
from modeling_eem.report.dataset_card import RowsFacts, dataset_card

_FILE_BYTES = 500_000_000  # a parquet file's rows in memory, as `datasets` cuts them


def write_hub_folder(
    rows: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    location: str = ".",
    licence: str | None = None,
    language: str | None = None,
) -> Path:
    """Write the files of a Hub repository for a folder of `eem data prepare` or `eem entropy`.

    `datasets.load_dataset` loads it, as a folder and from the Hub. Paths and secrets of this machine are left out.

    Args:
        rows: the folder of rows.
        output: a new folder, or an empty one.
        name: the card's title; the folder's name if None.
        location: what the card's snippet loads: the repository that you will push it to.
        licence, language: those of the text, by the Hub's names: "cc-by-4.0", "en".

    Returns:
        `output`.

    Raises:
        ValueError: for a folder that does not exist, rows that neither command made or that
            changed since, a tokenizer that is damaged or
            another's, or an output that is not empty.
    """
    rows, output = Path(rows), Path(output)
    if not rows.is_dir():
        raise ValueError(f"{rows} does not exist: name a folder of eem data prepare or eem entropy.")
    splits = open_rows(rows)
    made = read_fingerprint(rows)
    check_fingerprint(rows, load_tokenizer(rows / TOKENIZER_FOLDER))  # it is published with the rows
    counted = read_record(rows / RESULTS_FILE, {"splits": dict})["splits"]
    columns = next(iter(splits.values())).column_names
    numbers = {
        split: {name: count for name, count in counts.items() if isinstance(count, int | float)}
        for split, counts in counted.items()
    }
    measured: dict[str, Any] = {}
    if TOKEN_ENTROPIES in columns:
        measured = without_secrets(read_record(rows / ENTROPIES_FILE, {"method": str, "unit": str}))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty: choose another --output.")
    verify_rows(rows)  # what is published has no changed bit
    card = dataset_card(
        RowsFacts(
            name=name or rows.name,
            location=location,
            columns=columns,
            splits=numbers,
            method=measured.get("method"),
            unit=measured.get("unit", "nats"),
            models=_by_column(columns, _names(measured.get("models"))),
            # `datasets` takes a folder with the same card for the same rows (5.2): other rows need another card.
            origin={**_origin(made, measured), "rows, SHA-256": sha256(rows / CONTENTS_FILE)},
            licence=licence,
            language=language,
        )
    )
    with folder_at_once(output) as folder, without_dataset_bars():
        (folder / "data").mkdir()
        for split, dataset in splits.items():
            shards = max(1, -(-int(dataset.data.nbytes) // _FILE_BYTES))
            for number in range(shards):
                part = dataset.shard(shards, number, contiguous=True)
                part.to_parquet(folder / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet")
        shutil.copytree(rows / TOKENIZER_FOLDER, folder / TOKENIZER_FOLDER)
        for file, content in ((FINGERPRINT_FILE, made), (ENTROPIES_FILE, measured)):
            if content:
                (folder / file).write_text(json.dumps(without_secrets(content), indent=2) + "\n")
        (folder / "README.md").write_text(str(card))
    return output


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """No progress bars of `datasets` while this is open; afterwards they are as they were."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _names(models: Any) -> list[str]:
    named = models.values() if isinstance(models, dict) else models if isinstance(models, list) else [models]
    return [str(model) for model in named if model]


def _by_column(columns: Sequence[str], models: list[str]) -> dict[str, list[str]]:
    """The models of each column of entropies: those of several stages are named one after another, oldest first."""
    stages = [name for name in columns if name.startswith(f"{TOKEN_ENTROPIES}_")] + [TOKEN_ENTROPIES]
    size = len(models) // len(stages)
    return {column: models[stage * size : (stage + 1) * size] for stage, column in enumerate(stages)}


def _origin(made: dict[str, Any], measured: dict[str, Any]) -> dict[str, str]:
    """What the rows and entropies were made from, in words."""
    told = {
        "rows": f"{made['rows']}, up to {made['max_length']:,} tokens",
        "tokenizer": f"{made['vocab_size']:,} tokens, fingerprint {made['tokenizer'][:16]}",
    }
    if not measured:
        return told
    told["method"] = measured["method"] + "".join(f", {key} {value}" for key, value in measured["options"].items())
    told["unit"] = measured["unit"]
    models = _names(measured.get("models"))
    for number, (model, digest) in enumerate(zip(models, measured["model_sha256"]), start=1):
        alike = f" ({number} of {len(models)})" if models.count(model) > 1 else ""
        told[f"model {model}{alike}"] = f"SHA-256 {digest[:16]} of its config and weights"
    told |= {key: str(value) for key, value in (measured.get("provenance") or {}).items()}
    return told
