"""`eem data prepare` beside the tokenizers library's own `encode_batch`, on the same text and cores.

Every row mode is timed whole: worker processes started, text read, tokens made into rows, files written and the data
set completed; `encode_batch` gets the texts in memory and leaves its tokens there.
"""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_eem.data import ROW_MODES, read_documents
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "modeling_eem" / "assets" / "quickstart" / "train.jsonl.gz"
COPIES = 6  # of the text that ships, or the start of the processes would be what is timed
MAX_LENGTH = 1024
FLOOR = 0.8


def measure(repeats: int) -> dict[str, list[float]]:
    """Row mode → MB of text a second over `encode_batch`'s, which takes its turn before each."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ratios: dict[str, list[float]] = {mode: [] for mode in ROW_MODES}
    with TemporaryDirectory() as folder:
        data = [str(Path(folder) / f"{number}.jsonl") for number in range(COPIES)]
        for file in data:
            Path(file).write_bytes(gzip.decompress(TEXT.read_bytes()))
        texts = [document.text for document in read_documents(data)]
        _check_tokens(data, texts, tokenizer)
        for mode in repeats * list(ROW_MODES):
            began = time.perf_counter()
            os.environ["TOKENIZERS_PARALLELISM"] = "true"
            backend.encode_batch(texts, add_special_tokens=False)
            encoded = time.perf_counter()
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            options = RowOptions(rows=mode, max_length=MAX_LENGTH)
            shards = plan_shards(data, options.text_column, options.shard_bytes)
            with TemporaryDirectory() as output:
                prepare_rows(shards, tokenizer, Path(output) / "rows", options, Launch(workers=os.cpu_count() or 1))
            ratios[mode].append((encoded - began) / (time.perf_counter() - encoded))
    return ratios


def _check_tokens(data: list[str], texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Windows without their BOS are the tokens of `encode_batch`, one after the other."""
    options = RowOptions(rows="windows", max_length=MAX_LENGTH, held_out=0)
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        prepare_rows(plan_shards(data, options.text_column, options.shard_bytes), tokenizer, rows, options)
        ours = [token for row in load_from_disk(str(rows))["train"]["input_ids"] for token in row[1:]]
    theirs = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    if ours != [token for encoding in theirs for token in encoding.ids]:
        raise AssertionError("eem data prepare and encode_batch give other tokens")


def prepare(repeats: int) -> "list":
    """In a process of its own: the workers that it starts import its main module, which should be a small one."""
    from figures import Figure

    command = [sys.executable, __file__, str(repeats)]
    ratios = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return [
        Figure(f"eem data prepare --rows {mode}, MB/s over encode_batch's", ratios[mode], FLOOR) for mode in ratios
    ]


CASES = {"prepare": prepare}

if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
