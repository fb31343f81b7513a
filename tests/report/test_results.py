import pytest

from modeling_eem.report import plain_name


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
