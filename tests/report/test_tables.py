import io
import json
import math
import subprocess
import sys

import pytest
from rich.console import Console

from modeling_eem.report import Table

TABLE = Table(
    columns=["model", "bits per byte", "parameters"],
    rows=[["EEM", 2.0512, 1234567], ["a|b\nc", math.nan, None], ["[bold]xz[/bold]", 2, None]],
    title="Held-out text",
    notes=["code included", "same bytes"],
)


def test_markdown_aligns_numbers_to_the_right_and_escapes_cells() -> None:
    assert TABLE.to_markdown() == (
        "**Held-out text**\n"
        "\n"
        "| model           | bits per byte | parameters |\n"
        "| --------------- | ------------: | ---------: |\n"
        "| EEM             |         2.051 |  1,234,567 |\n"
        "| a\\|b c          |             – |          – |\n"
        "| [bold]xz[/bold] |             2 |          – |\n"
        "\n"
        "- code included\n"
        "- same bytes\n"
    )


def test_markdown_without_title_notes_or_rows() -> None:
    assert Table(["a", "b"], []).to_markdown() == "|   a |   b |\n| --: | --: |\n"


def test_formats_belong_to_columns() -> None:
    table = Table(["rate", "share"], [[0.0002, 0.5]], formats={"rate": ".0e", "share": ".1%"})
    assert table.to_markdown().splitlines()[-1] == "| 2e-04 | 50.0% |"


def test_json_keeps_all_digits_and_has_no_nan() -> None:
    content = json.loads(TABLE.to_json(), parse_constant=pytest.fail)
    assert content["title"] == "Held-out text" and content["notes"] == ["code included", "same bytes"]
    assert content["columns"] == ["model", "bits per byte", "parameters"]
    assert content["rows"][0] == {"model": "EEM", "bits per byte": 2.0512, "parameters": 1234567}
    assert content["rows"][1]["bits per byte"] is None


def test_terminal_shows_every_cell_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(TABLE)
    shown = console.file.getvalue()
    for text in ("Held-out text", "[bold]xz[/bold]", "1,234,567", "2.051", "code included"):
        assert text in shown


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        Table(["a", "a"], [])
    with pytest.raises(ValueError, match="2 values"):
        Table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="'c'"):
        Table(["a", "b"], [], formats={"c": ".1f"})


def test_a_table_needs_no_matplotlib() -> None:
    """It takes a second to import, and most commands print a table only."""
    program = "import sys; from modeling_eem.report import Table; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
