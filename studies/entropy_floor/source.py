"""The text of this study: a Markov chain of 4 symbols, in independent rows of 12, a byte a symbol.

    python studies/entropy_floor/source.py runs/floor

A document is 100 rows end to end, and windows of 12 symbols cut it back into them. Prints the bits per byte of a row:
exact, and of the rows written, by their true probabilities.
"""

import gzip
import json
import math
import sys
from pathlib import Path

import torch

from modeling_eem.data.sources import MarkovSource

SYMBOLS, ROW, ROWS_A_DOCUMENT = "abcd", 12, 100


def main(folder: Path) -> None:
    """Write `train.jsonl.gz` and `held-out.jsonl.gz`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = MarkovSource.random(len(SYMBOLS), order=1, concentration=0.5, seed=0)
    for name, documents, seed in (("train", 2000, 1), ("held-out", 40, 2)):
        rows = source.sample(documents * ROWS_A_DOCUMENT, ROW, torch.Generator().manual_seed(seed))
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            for document in rows.view(documents, -1).tolist():
                file.write(json.dumps({"text": "".join(SYMBOLS[symbol] for symbol in document)}) + "\n")
        print(f"{name}: {-source.log_probs(rows).mean().item() / math.log(2):.4f} bits per byte")
    first = source.conditional_entropies(torch.zeros(1, 1, dtype=torch.long)).item()  # a row's first symbol knows less
    print(f"exact: {(first + (ROW - 1) * source.entropy_rate) / ROW / math.log(2):.4f} bits per byte")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
