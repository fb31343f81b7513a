"""Default models: the newest is used, older ones stay loadable by their id, files say which release brought theirs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, IntegerModel, registry
from modeling_eem.codec.container import Header
from modeling_eem.codec.file_operations import FileOptions, compress_files, decompress_files

GOLDEN = Path(__file__).parent / "golden" / "version_1"


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: Any) -> Path:
    """An installation with two default models, an older one and the newest."""
    folder = tmp_path / "assets"
    entries = []
    for name, release in (("eem", [0, 2]), ("causal", [0, 5])):
        shutil.copytree(GOLDEN / name, folder / name)
        entries.append({"id": IntegerModel.from_pretrained(folder / name).id, "folder": name, "release": release})
    (folder / "released.json").write_text(json.dumps(entries))
    monkeypatch.setattr(registry, "ASSETS", folder)
    return folder


def test_the_default_is_the_newest_and_files_name_its_release(assets: Path) -> None:
    codec = Codec.default()
    assert codec.model_id == registry.released_models()[-1].id
    data = (GOLDEN / "plain").read_bytes()
    blob = codec.compress(data)
    header = Header.from_bytes(blob)
    assert header.release == (0, 5)
    assert Codec.for_header(header).decompress(blob) == data


def test_files_of_older_defaults_decode_without_naming_a_model(assets: Path, tmp_path: Path) -> None:
    for name in ("eem", "eem_carry", "causal", "carry", "bytes"):
        shutil.copy(GOLDEN / f"{name}.eem", tmp_path)
    paths = sorted(tmp_path.glob("*.eem"))
    results = decompress_files(paths, FileOptions(), lambda line: None)
    assert [result.error for result in results] == [None] * 5
    plain = (GOLDEN / "plain").read_bytes()
    assert all(path.with_suffix("").read_bytes() == plain for path in paths)


def test_a_codec_comes_from_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    Codec.from_pretrained(GOLDEN / "causal", carry=True).save_pretrained(tmp_path)
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr("modeling_eem.codec.codec.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.hub_mixin.hf_hub_download", lambda repo_id, **_: str(tmp_path / "config.json")
    )
    codec = Codec.from_pretrained("someone/codec", revision="v1")
    assert asked == [("someone/codec", "v1")] and codec.carry
    assert codec.decompress((GOLDEN / "causal.eem").read_bytes()) == (GOLDEN / "plain").read_bytes()


def test_the_first_line_works_after_installation(assets: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_bytes((GOLDEN / "plain").read_bytes()[:4000])
    (packed,) = compress_files([notes], FileOptions(), lambda line: None)
    assert packed.error is None and packed.file_bytes < 4000
    assert packed.report.model_id == Codec.default().model_id
