"""Drop every training document that shares a span of text with a held-out document.

    python studies/default_codec/drop_overlaps.py \
        --train general_train.parquet math_train.parquet quickstart/train.jsonl \
        --held-out general_validation.parquet math_validation.parquet quickstart/validation.jsonl \
        --output kept.parquet --report overlaps.json --calibration calibration.jsonl

Two documents overlap when they share a span of 60 characters, after runs of white space became one space. A training
document that stands twice is kept once. The report lists what was dropped and because of which held-out file. Every
hundredth document that is kept also goes into the calibration file, which `eem codec build` chooses its grids on.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import pandas

from modeling_eem.report.results import compact_json

SPAN = 60


def read(path: Path) -> pandas.DataFrame:
    frame = pandas.read_json(path, lines=True) if ".jsonl" in path.name else pandas.read_parquet(path)
    frame["file"] = path.name
    return frame


def spans(text: str) -> set[str]:
    """All spans of a text; a shorter text is a span itself."""
    text = " ".join(text.split())
    return {text[start : start + SPAN] for start in range(max(1, len(text) - SPAN + 1))}


def overlap(text: str, held_out: dict[str, str]) -> str | None:
    """The held-out file that shares a span with a text; None if none does."""
    text = " ".join(text.split())
    for start in range(max(1, len(text) - SPAN + 1)):
        if (file := held_out.get(text[start : start + SPAN])) is not None:
            return file
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--held-out", nargs="+", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    arguments = parser.parse_args()

    held_out = {span: path.name for path in arguments.held_out for text in read(path)["text"] for span in spans(text)}
    kept, dropped, seen = [], [], set()
    counts = {path.name: Counter() for path in arguments.train}
    for path in arguments.train:
        for number, row in enumerate(read(path).to_dict("records")):
            text = row["text"]
            because = "stands twice" if text in seen else overlap(text, held_out)
            seen.add(text)
            counts[path.name]["documents"] += 1
            counts[path.name]["bytes"] += len(text.encode())
            if because is None:
                counts[path.name]["kept_documents"] += 1
                counts[path.name]["kept_bytes"] += len(text.encode())
                kept.append({"text": text, "file": path.name, "source": row.get("source")})
            else:
                title = row.get("title")
                dropped.append([path.name, number, title if isinstance(title, str) else text[:40], because])
    # Mixed once, so that a run sees all kinds of text from its first step.
    frame = pandas.DataFrame(kept).sample(frac=1, random_state=0)
    frame.to_parquet(arguments.output, index=False)
    frame[["text"]].iloc[::100].to_json(arguments.calibration, orient="records", lines=True)
    report = {"span": SPAN, "files": counts, "dropped": dropped}
    arguments.report.write_text(compact_json(report))
    print(json.dumps(counts, indent=2), f"dropped {len(dropped)}")


if __name__ == "__main__":
    main()
