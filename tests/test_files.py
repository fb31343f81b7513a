from pathlib import Path

import pytest
from jinja2 import UndefinedError

from modeling_eem import files
from modeling_eem.files import write_atomically


def test_writes_text_and_bytes_into_folders_that_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert write_atomically(path, "naïve\r\n") == path
    assert path.read_bytes() == "naïve\r\n".encode()
    write_atomically(str(path), b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    with pytest.raises(TypeError):
        write_atomically(path, None)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_template_gets_all_it_asks_for() -> None:
    with pytest.raises(UndefinedError):
        files.render("heatmap.html.jinja", title="only")
