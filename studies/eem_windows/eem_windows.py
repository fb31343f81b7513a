"""What an EEM's code earns in a file: windows that chose it, against the same decoder without it and a causal rival.

    eem quickstart --output quickstart
    python studies/eem_windows/eem_windows.py --eem quickstart/codec/eem --causal quickstart/codec/causal \
        --text quickstart/held_out.txt --other-language german.txt --output studies/eem_windows

Four texts are compressed with each codec model: the held-out text, text of a language that no model has met, one line
repeated, and random bytes. "Without its code" is the EEM's own decoder, which the encoder is not allowed to give a
code. Every file is decoded and compared.
"""

import argparse
import random
from pathlib import Path

from modeling_eem.codec import Codec, IntegerModel
from modeling_eem.codec.container import Kind
from modeling_eem.report import Table, write_results
from modeling_eem.report.provenance import PACKAGES


def compressed(codec: Codec, data: bytes) -> bytes:
    blob = codec.compress(data)
    if codec.decompress(blob) != data:
        raise RuntimeError("a file does not come back.")
    return blob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eem", type=Path, required=True, help="folder of an EEM's codec model")
    parser.add_argument("--causal", type=Path, required=True, help="folder of a causal model's, about as large")
    parser.add_argument("--text", type=Path, required=True, help="held-out text")
    parser.add_argument("--other-language", type=Path, required=True, help="text that is not English")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()

    without_code = IntegerModel.from_pretrained(arguments.eem)
    without_code.has_code = False  # so the encoder is offered none
    codecs = {
        "EEM": Codec(IntegerModel.from_pretrained(arguments.eem)),
        "without its code": Codec(without_code),
        "causal": Codec(IntegerModel.from_pretrained(arguments.causal)),
    }
    texts = {
        "held out": arguments.text.read_bytes(),
        "another language": arguments.other_language.read_bytes()[:100_000],
        "one line, repeated": b"The state of our Union is strong. " * 1500,
        "random bytes": random.Random(0).randbytes(50_000),
    }
    rows = []
    for name, data in texts.items():
        files = {kind: compressed(codec, data) for kind, codec in codecs.items()}
        report = codecs["EEM"].list(files["EEM"])
        coded = report.windows[Kind.CODED] + report.windows[Kind.CODED_FULL]
        text = coded + report.windows[Kind.TEXT] + report.windows[Kind.TEXT_FULL]
        saved = len(files["without its code"]) - len(files["EEM"])
        rows.append((name, len(data), *map(len, files.values()), report.windows.total(), text, coded, saved))
        print(rows[-1], flush=True)
    columns = ("text", "bytes", *codecs, "windows", "of text", "with code", "code earned")
    table = Table(
        columns=columns,
        rows=rows,
        title="Files in bytes",
        notes=(
            "Windows: of the EEM's file; of text: not stored as bytes; with code: that chose the code. Code earned: "
            "bytes by which the EEM's file is shorter than its own decoder's without a code.",
        ),
        formats=dict.fromkeys(columns[1:], ","),
    )
    content = {"data": [str(arguments.text), str(arguments.other_language)], "rows": [list(row) for row in rows]}
    write_results(arguments.output, "eem-windows", [table], content, packages=(*PACKAGES, "numba", "numpy"))


if __name__ == "__main__":
    main()
