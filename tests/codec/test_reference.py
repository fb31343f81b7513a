"""The reference decoder, which shares no code, gives the same tokens."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_eem.codec import IntegerModel, reference
from modeling_eem.codec.reference import ReferenceDecoder

MakeModel = Callable[[str], IntegerModel]
Draw = Callable[[IntegerModel, int], tuple[list[list[int]], list[list[int]]]]


@pytest.mark.parametrize("kind", ["flat", "tied", "heads", "taps", "odd", "token", "embedding", "combination"])
def test_reference_decodes_the_payloads(
    integer_model: MakeModel, draw_windows: Draw, kind: str, tmp_path: Path
) -> None:
    model = integer_model(kind)
    windows, contexts = draw_windows(model, 4)
    codes = model.encode_codes(windows) if model.has_code else [None] * 4
    codes[0] = None
    model.save_pretrained(tmp_path)
    decoder = ReferenceDecoder(tmp_path)
    for window, context, code, payload in zip(
        windows, contexts, codes, model.encode_windows(windows, contexts, codes)
    ):
        assert decoder.decode(payload, len(window), context, code is not None) == window


def test_reference_runs_by_itself(integer_model: MakeModel, draw_windows: Draw, tmp_path: Path) -> None:
    model = integer_model("flat")
    windows, _ = draw_windows(model, 3)
    model.save_pretrained(tmp_path)
    lines = [
        json.dumps({"payload": payload.hex(), "length": len(window)})
        for payload, window in zip(model.encode_windows(windows), windows)
    ]
    command = [sys.executable, "-I", reference.__file__, str(tmp_path)]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == windows


def test_reference_shares_no_code_and_stays_short() -> None:
    source = Path(reference.__file__).read_text()
    assert len(source.splitlines()) <= 400
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported == {"json", "sys", "pathlib", "numpy"}


def test_reference_refuses_a_damaged_payload(integer_model: MakeModel, draw_windows: Draw, tmp_path: Path) -> None:
    model = integer_model("flat")
    windows, _ = draw_windows(model, 3)
    model.save_pretrained(tmp_path)
    window, payload = max(zip(windows, model.encode_windows(windows)), key=lambda pair: len(pair[0]))
    with pytest.raises(ValueError, match="damaged"):
        ReferenceDecoder(tmp_path).decode(payload + b"\1", len(window))
