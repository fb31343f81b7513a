"""Templates get every value that they ask for."""

import pytest
from jinja2 import UndefinedError

from modeling_eem.report.rendering import render


def test_a_template_gets_all_it_asks_for() -> None:
    with pytest.raises(UndefinedError):
        render("heatmap.html.jinja", title="only")
