"""Files of every format version decode for ever, by the package's decoders and by the reference."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_eem.codec import Codec, IntegerModel
from modeling_eem.codec.container import Header, Kind
from modeling_eem.codec.plain_decoder import PlainDecoder
from modeling_eem.codec.reference import ReferenceDecoder
from modeling_eem.codec.registry import Release, released_models

GOLDEN = Path(__file__).parent / "golden"
MODELS = {"bytes": None, "causal": "causal", "carry": "causal", "eem": "eem", "eem_carry": "eem"}
FILES = [(version, name) for version in ("version_1",) for name in MODELS]


class Reference:
    """The reference decoder as a codec model that decodes."""

    def __init__(self, folder: Path, model: IntegerModel) -> None:
        self._decoder = ReferenceDecoder(folder)
        self.id, self.context, self.has_code = model.id, model.context, model.has_code
        self.backend_tokenizer, self.vocab_size = model.backend_tokenizer, model.vocab_size

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[list[int]],
        with_code: Sequence[bool],
    ) -> list[list[int]]:
        return [self._decoder.decode(*window) for window in zip(payloads, lengths, contexts, with_code)]


def _model(version: str, name: str, decoder: str) -> Any:
    if MODELS[name] is None:
        return None
    folder = GOLDEN / version / MODELS[name]
    model = IntegerModel.from_pretrained(folder)
    if decoder == "plain":
        model._decoder = PlainDecoder(model.sizes, model.tensors)
    return Reference(folder, model) if decoder == "reference" else model


@pytest.mark.parametrize(("version", "name"), FILES)
@pytest.mark.parametrize("decoder", ["default", "plain", "reference"])
def test_golden_files_decode(version: str, name: str, decoder: str) -> None:
    plain = (GOLDEN / version / "plain").read_bytes()
    blob = (GOLDEN / version / f"{name}.eem").read_bytes()
    assert Codec(_model(version, name, decoder)).decompress(blob) == plain


@pytest.mark.parametrize(("version", "name"), FILES)
def test_golden_files_hold_every_kind_that_they_are_for(version: str, name: str) -> None:
    report = Codec(None).list((GOLDEN / version / f"{name}.eem").read_bytes())
    assert report.carry == ("carry" in name)
    assert (report.windows[Kind.TEXT_FULL] > 5) == (name != "bytes")
    assert (report.windows[Kind.TEXT] + report.windows[Kind.CODED] > 0) == (name in ("causal", "eem"))
    assert (report.windows[Kind.CODED_FULL] > 5) == ("eem" in name)
    assert report.windows[Kind.ZSTD] > 0
    assert name == "bytes" or report.windows[Kind.RAW] > 0


@pytest.mark.parametrize("release", released_models(), ids=lambda release: release.folder.name)
@pytest.mark.parametrize("decoder", ["default", "reference"])
def test_files_of_default_models_decode(release: Release, decoder: str) -> None:
    plain = (GOLDEN / "default_models" / "plain").read_bytes()
    blob = (GOLDEN / "default_models" / f"{release.folder.name}.eem").read_bytes()
    assert Header.from_bytes(blob).model_id == release.id
    model = IntegerModel.from_pretrained(release.folder)
    assert Codec(Reference(release.folder, model) if decoder == "reference" else model).decompress(blob) == plain


def test_golden_models_decode_alone_and_at_any_place() -> None:
    plain = (GOLDEN / "version_1" / "plain").read_bytes()
    for name in MODELS:
        with Codec(_model("version_1", name, "default")).open(GOLDEN / "version_1" / f"{name}.eem") as archive:
            for start in np.linspace(0, len(plain) - 1, 6).astype(int).tolist():
                assert archive.read(start, 9) == plain[start : start + 9]


def test_a_model_whose_id_is_forged_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "causal"
    shutil.copytree(GOLDEN / "version_1" / "causal", folder)
    content = json.loads((folder / "codec.json").read_text())
    content["id"] = "0" * 64
    (folder / "codec.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not those of model"):
        Codec.from_pretrained(folder)
