"""Where the time goes: products are told from the rest, and the limit follows from what was counted."""

from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def profiles(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import profiles

    return profiles


def test_products_are_told_from_the_rest(profiles: ModuleType) -> None:
    a, b = torch.randn(2, 256, 256)
    its = profiles.profiled("a product and an exponential", "ours", lambda: torch.mm(a, b).exp_())
    assert its.flops == 2 * 256**3
    assert its.took > 0 and its.in_products > 0 and its.elsewhere["aten::exp_"] > 0 and "aten::mm" not in its.elsewhere


def test_the_limit_is_all_products_at_the_peak(profiles: ModuleType) -> None:
    ours = profiles.Profile(
        "step", "ours", 0.4, in_products=0.3, flops=20e9, peak=100e9, elsewhere={"aten::exp_": 0.1}
    )
    plain = profiles.Profile("step", "plain", 0.8, in_products=0.6, flops=40e9, peak=100e9, elsewhere={})
    ours_row, plain_row = profiles.profile_table([(ours, plain)]).rows
    assert ours_row[-2:] == (pytest.approx(2.0), pytest.approx(4.0))  # 0.8 s over 0.4 s, and over 0.2 s
    assert plain_row[-2:] == (None, None)
