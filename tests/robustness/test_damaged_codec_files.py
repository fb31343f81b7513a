"""Damaged codec models and `.eem` files: an error of one line that names them, or the bytes that were compressed."""

import random
import shutil
from pathlib import Path

import pytest
from damage import damage, spoil
from processes import emptied, rounds, run

from modeling_eem.codec import Codec

NOT_READ = ("README.md",)


@pytest.fixture(scope="module")
def codec(made: dict[str, Path]) -> Codec:
    return Codec.from_pretrained(made["codec"])


def test_damaged_codec_models(made: dict[str, Path], documents: dict[str, Path], codec: Codec, tmp_path: Path) -> None:
    """The encoder is no part of a model's identity: with another one a file is longer, but decodes alike."""
    chance = random.Random("codec models")
    refused = 0
    for attempt in rounds(5, 2):
        with attempt:
            folder = emptied(tmp_path / "round")
            model = folder / "model"
            shutil.copytree(made["codec"], model)
            file = chance.choice(
                [path for path in sorted(model.rglob("*")) if path.is_file() and path.name not in NOT_READ]
            )
            how = damage(file, chance)
            is_packing = chance.random() < 0.5
            command, source = ("compress", documents["txt"]) if is_packing else ("decompress", made["packed"])
            result = run([command, "--model", model, "-T", 1, "-o", folder / "out", source], folder)
            what = f"{command}: {file.relative_to(model)}: {how}: {result}"
            if result.is_error:
                refused += 1
                assert str(model) in result.error or "codec model" in result.error, what
                assert not (folder / "out").exists(), what
                continue
            assert result.code == 0, what
            data = (folder / "out").read_bytes()
            assert (codec.decompress(data) if is_packing else data) == documents["txt"].read_bytes(), what
    assert refused > 0


def test_damaged_eem_files(made: dict[str, Path], documents: dict[str, Path], tmp_path: Path) -> None:
    """`tests/codec/test_mutations.py` knows more of what a damaged file still holds."""
    chance = random.Random("eem files")
    refused = 0
    for attempt in rounds(5, 2):
        with attempt:
            folder = emptied(tmp_path / "round")
            packed = Path(shutil.copy(made["packed"], folder / "notes.eem"))
            how = spoil(packed, chance)
            what_to_do = chance.choice([["-o", folder / "out"], ["-o", folder / "out"], ["-t"], ["-l"]])
            result = run(["decompress", "--model", made["codec"], "-T", 1, *what_to_do, packed], folder)
            what = f"{what_to_do}: {how}: {result}"
            if result.is_error:
                refused += 1
                assert str(packed) in result.error, what
                assert not (folder / "out").exists(), what
                continue
            assert result.code == 0, what
            if packed.read_bytes() != made["packed"].read_bytes():
                assert what_to_do == ["-l"], what
            elif (folder / "out").exists():
                assert (folder / "out").read_bytes() == documents["txt"].read_bytes(), what
    assert refused > 0
