"""Licences of cards: what the Hub knows, what is doubted."""

import pytest

from modeling_eem.report.licences import licence_doubt


@pytest.mark.parametrize("licence", ["cc-by-4.0", "apache-2.0", "other"])
def test_the_hubs_names_are_not_doubted(licence: str) -> None:
    assert licence_doubt(licence) is None


@pytest.mark.parametrize(
    ("licence", "words"),
    [(None, "no licence"), ("", "no licence"), ("CC-BY-4.0", "nearest are cc-by-4.0"), ("mine", "`other` stands")],
)
def test_others_are_doubted_in_a_line(licence: str | None, words: str) -> None:
    doubt = licence_doubt(licence)
    assert doubt is not None and words in doubt and "\n" not in doubt
