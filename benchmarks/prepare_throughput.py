"""How fast `eem-data prepare` is, beside the tokenizers library's own `encode_batch` on the same text and cores.

python benchmarks/prepare_throughput.py --data TEXT.parquet --tokenizer tokenizer

Prints a table and writes the same as JSON. The ratio is for the whole of `prepare_rows`: worker processes started,
text read, tokens made into rows, files written and the data set completed; `encode_batch` gets the texts in memory
and leaves its tokens there. The two alternate, `--repeats` times each; the medians are compared. With `--workers 1`
all work is done in this process, and seconds are those of its CPU time: that ratio holds on a busy machine too.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import rich
from transformers import AutoTokenizer

from modeling_eem.data import read_documents
from modeling_eem.data.prepare import Launch, RowOptions, prepare_rows
from modeling_eem.data.shards import plan_shards
from modeling_eem.report import Table, write_atomically

FLOOR = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="local files")
    parser.add_argument("--tokenizer", default="tokenizer")
    parser.add_argument("--rows", default="windows", choices=["windows", "pad", "stream", "pack"])
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write the JSON")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    texts = [document.text for document in read_documents(arguments.data)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    options = RowOptions(rows=arguments.rows, max_length=arguments.max_length)
    shards = plan_shards(arguments.data, options.text_column, options.shard_bytes)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True

    def encode() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        os.environ["RAYON_NUM_THREADS"] = str(arguments.workers)
        backend.encode_batch(texts, add_special_tokens=False)

    def prepare() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with TemporaryDirectory() as folder:
            prepare_rows(shards, tokenizer, Path(folder) / "rows", options, Launch(workers=arguments.workers))

    clock = time.process_time if arguments.workers == 1 else time.perf_counter
    speeds: dict[str, list[float]] = {"tokenizers encode_batch": [], f"eem-data prepare --rows {arguments.rows}": []}
    for _ in range(arguments.repeats):
        for name, run in zip(speeds, (encode, prepare)):
            began = clock()
            run()
            speeds[name].append(megabytes / (clock() - began))
    reference, ours = (statistics.median(values) for values in speeds.values())
    table = Table(
        columns=("program", "MB/s", "of encode_batch"),
        rows=[
            (name, statistics.median(values), statistics.median(values) / reference) for name, values in speeds.items()
        ],
        title=f"{megabytes:.1f} MB of text, {len(shards)} shards, {arguments.workers} workers, {clock.__name__}",
        notes=[f"floor for the ratio: {FLOOR}", f"all runs, MB/s: {json.dumps(list(speeds.values()))}"],
        formats={"MB/s": ".2f", "of encode_batch": ".2f"},
    )
    rich.print(table)
    if arguments.output:
        write_atomically(arguments.output, table.to_json())
    if ours / reference < FLOOR:
        raise SystemExit(f"below the floor: {ours / reference:.2f}")


if __name__ == "__main__":
    main()
