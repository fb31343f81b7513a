from pathlib import Path

import pytest

from modeling_eem.report import Table, plain_name, results, write_results


@pytest.mark.parametrize("name", ["eem", "runs-1.5_b", "日本"])
def test_plain_names_stay(name: str) -> None:
    assert plain_name(name) == name


NAMES = [
    "../../etc/passwd",
    "/abs/olute",
    "a/b",
    "a-b",
    "..",
    ".",
    "",
    "x" * 500,
    "x" * 501,
    "a\0b",
    "a\nb",
    ".hidden",
]


def test_names_from_data_are_no_paths_and_never_the_same_file() -> None:
    plain = [plain_name(name) for name in NAMES]
    assert len(set(plain)) == len(NAMES)
    for name in plain:
        assert name and not name.startswith(".") and len(name.encode()) < 200
        assert not set(name) & set("/\\\0\n")


ROOT = Path(__file__).parents[2]
RECORDS = [path for folder in ("records", "studies") for path in sorted((ROOT / folder).rglob("*.md"))]


@pytest.mark.parametrize("commit", ["1234567", "1234567-dirty"])
def test_uncommitted_changes_are_said_first(commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = {"command": "x", "commit": commit, "versions": "", "machine": "", "date": ""}
    monkeypatch.setattr(results, "provenance", lambda packages: origin)
    write_results(tmp_path, "x", [Table(["a"], [[1]])], {})
    is_said = "uncommitted changes" in (tmp_path / "x.md").read_text().splitlines()[0]
    assert is_said == commit.endswith("-dirty")


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_published_records_say_so_too(record: Path) -> None:
    text = record.read_text()
    assert "-dirty" not in text or "uncommitted changes" in text[:600]
