import math

import pytest

from modeling_eem.report import duration, quantity, readable


@pytest.mark.parametrize(
    "value, spec, text",
    [
        (299530622.9327, ".4f", "3.0e+08"),
        (1786790874.0092, "", "1.8e+09"),
        (2.0512, "", "2.051"),
        (0.0, ".4f", "0.0000"),
        (0.00002, ".4f", "2.0e-05"),
        (-0.00002, "+.4f", "-2.0e-05"),
        (0.00002, "+.4f", "+2.0e-05"),
        (-0.00002, "+z.4f", "+0.0000"),
        (-0.2, "+z.4f", "-0.2000"),
        (1234567, "", "1,234,567"),
        (12345678.0, ",.0f", "12,345,678"),
        (1e22, ",.0f", "1.0e+22"),
        (0.5, ".1%", "50.0%"),
        (2.87714e-4, ".3g", "0.000288"),
        (math.inf, ".3f", "inf"),
        (999999.5, ".1f", "999999.5"),
    ],
)
def test_numbers_are_readable(value: float, spec: str, text: str) -> None:
    assert readable(value, spec) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.00016 * 3600, "0.58 s"),
        (0, "0 s"),
        (9.96, "10 s"),
        (42.4, "42 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599.8, "1 h"),
        (3900, "1 h 5 min"),
        (86399, "1 d"),
        (183600, "2 d 3 h"),
    ],
)
def test_durations_are_what_people_say(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0 B"),
        (982, "982 B"),
        (999.6, "1.00 kB"),
        (12_345_678, "12.3 MB"),
        (999_600, "1.00 MB"),
        (99_960_000, "100 MB"),
        (1.234e9, "1.23 GB"),
        (5e21, "5000 EB"),
    ],
)
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert quantity(value, "B") == text
