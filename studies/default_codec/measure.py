"""What the default codec model makes of text that it has not met, beside general-purpose compressors.

    python studies/default_codec/measure.py \
        --held-out quickstart/validation.jsonl general_validation.parquet math_validation.parquet \
        --train kept.parquet --output studies/default_codec

Whole texts: the file of windows alone and with `--carry`, against xz, zstd, brotli, bzip2, PPMd (7z) and zpaq -m5.
Documents of 1 to 16 kB one by one: against zstd -19, alone and with a dictionary of 100 kB trained on `--train`.
The model's own bytes are left out of every figure, and counted once in a column of their own. Every file is decoded
and compared. `7z` and `zpaq` are programs of Debian; without one its column is empty.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pandas
import zstandard

from modeling_eem.codec import Codec, num_threads
from modeling_eem.evaluation.compressors import COMPRESSORS
from modeling_eem.report import Table, write_results
from modeling_eem.report.provenance import PACKAGES

SIZES = ((1000, 2000), (2000, 4000), (4000, 8000), (8000, 16000))
DICTIONARY_BYTES = 100_000


def read(path: Path) -> list[str]:
    frame = pandas.read_json(path, lines=True) if ".jsonl" in path.name else pandas.read_parquet(path)
    return list(frame["text"])


def file_of(codec: Codec, data: bytes) -> bytes:
    """The compressed file, seen to decode to `data`."""
    blob = codec.compress(data)
    if codec.decompress(blob) != data:
        raise RuntimeError("a file does not come back from its compressed file.")
    return blob


def archive_bytes(data: bytes, program: str, *arguments: str) -> int | None:
    """Size of an archive of one file that holds `data`; None without the program."""
    if shutil.which(program) is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").write_bytes(data)
        command = [program, "a", f"archive.{program}", "text", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return (folder / f"archive.{program}").stat().st_size


def whole_texts(codecs: dict[str, Codec], texts: dict[str, bytes], model_bytes: int) -> Table:
    rows = []
    for name, data in texts.items():
        files = {kind: file_of(codec, data) for kind, codec in codecs.items()}
        sizes: dict[str, int | None] = {kind: len(blob) for kind, blob in files.items()}
        sizes["zpaq -m5"] = archive_bytes(data, "zpaq", "-m5", "-t1")
        sizes["PPMd"] = archive_bytes(data, "7z", "-m0=PPMd")
        sizes |= {kind: len(COMPRESSORS[kind](data)) for kind in ("xz", "bzip2", "brotli", "zstd")}
        bits = {kind: None if size is None else 8 * size / len(data) for kind, size in sizes.items()}
        with_model = 8 * (len(files["eem"]) + model_bytes) / len(data)
        rows.append((name, len(data), *bits.values(), with_model))
        print(name, bits, flush=True)
    columns = ("text", "bytes", *bits, "eem, model counted")
    return Table(
        columns=columns,
        rows=rows,
        title="Held-out texts, bits a byte",
        notes=(
            "`eem` is the default model with windows that stand alone, `eem --carry` with context. "
            f"Its {model_bytes:,} bytes are left out, and counted in the last column.",
        ),
        formats=dict.fromkeys(columns[2:], ".3f") | {"bytes": ","},
    )


def what_files_hold(codecs: dict[str, Codec], texts: dict[str, bytes]) -> Table:
    rows = []
    for name, data in texts.items():
        for kind, codec in codecs.items():
            report = codec.list(codec.compress(data), estimate=True)
            windows = report.windows.total()
            payload = report.payload_bytes.total()
            over = payload - (report.estimate_bits or 0) / 8
            rows.append((name, kind, windows, payload, over / windows, report.framing_bytes_per_window))
    return Table(
        columns=("text", "file", "windows", "payload bytes", "over the estimate", "framing"),
        rows=rows,
        title="Files against the model's estimate, bytes a window",
        notes=("The estimate is what the integer model's own counts cost; windows of bytes are none of it.",),
        formats={"windows": ",", "payload bytes": ",", "over the estimate": ".2f", "framing": ".2f"},
    )


def documents(codec: Codec, documents: list[bytes], train: list[str]) -> Table:
    dictionary = zstandard.train_dictionary(DICTIONARY_BYTES, [text.encode()[:16_000] for text in train[:5000]])
    rows = []
    for low, high in (*SIZES, (SIZES[0][0], SIZES[-1][1])):
        some = [data for data in documents if low <= len(data) < high]
        if not some:
            continue
        plain = zstandard.ZstdCompressor(level=19)
        trained = zstandard.ZstdCompressor(level=19, dict_data=dictionary)
        sizes = [sum(len(compress(data)) for data in some) for compress in (plain.compress, trained.compress)]
        ours = sum(len(file_of(codec, data)) for data in some)
        rows.append(
            (f"{low // 1000} to {high // 1000} kB", len(some), 8 * ours / sum(map(len, some)))
            + tuple(ours / size for size in sizes)
        )
        print(rows[-1], flush=True)
    return Table(
        columns=("documents of", "documents", "bits a byte", "against zstd -19", "against zstd, dictionary"),
        rows=rows,
        title="Documents one by one",
        notes=("Sums of whole files, ours over theirs. The dictionary is trained on the model's training text.",),
        formats={"bits a byte": ".3f", "against zstd -19": ".3f", "against zstd, dictionary": ".3f"},
    )


def speed(codec: Codec, data: bytes) -> Table:
    codec.decompress(codec.compress(data[:5000]))  # compiles
    rows = []
    tokens = len(codec.model.backend_tokenizer.encode(data.decode(), add_special_tokens=False).ids)
    wall, cpu = time.perf_counter(), time.process_time()
    blob = codec.compress(data)
    rows.append(("encoding", time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = time.perf_counter(), time.process_time()
    codec.decompress(blob)
    rows.append(("decoding", time.perf_counter() - wall, time.process_time() - cpu))
    return Table(
        columns=("what", "tokens a second", "kB a second", "tokens a CPU second"),
        rows=[(what, tokens / wall, len(data) / wall / 1000, tokens / cpu) for what, wall, cpu in rows],
        title=f"Speed with {num_threads()} threads",
        notes=("64 windows in step. Wall time holds only where the machine had nothing else to do.",),
        formats={"tokens a second": ",.0f", "kB a second": ".1f", "tokens a CPU second": ",.0f"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", nargs="+", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True, help="what the model was trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--model", type=Path, help="another codec model than the default one")
    arguments = parser.parse_args()

    codec = Codec.default() if arguments.model is None else Codec.from_pretrained(arguments.model)
    codecs = {"eem": codec, "eem --carry": Codec(codec.model, carry=True)}
    with tempfile.TemporaryDirectory() as folder:
        codec.save_pretrained(folder)
        model_bytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    read_texts = {path.name: read(path) for path in arguments.held_out}
    texts = {name: "".join(some).encode() for name, some in read_texts.items()}
    single = [text.encode() for some in read_texts.values() for text in some]
    tables = [
        whole_texts(codecs, texts, model_bytes),
        what_files_hold(codecs, texts),
        documents(codec, single, read(arguments.train)),
        speed(codec, max(texts.values(), key=len)),
    ]
    content = {
        "model": codec.model.id,
        "data": [path.name for path in (*arguments.held_out, arguments.train)],
        "tables": {table.title: json.loads(table.to_json())["rows"] for table in tables},
    }
    write_results(arguments.output, "default-codec", tables, content, packages=(*PACKAGES, "numba", "zstandard"))


if __name__ == "__main__":
    main()
