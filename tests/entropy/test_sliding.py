"""Sliding exact entropies against windows cut by hand, for texts shorter and longer than the context."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_eem.entropy import ExactEntropy, SlidingEntropy, exact, sliding
from modeling_eem.entropy.sliding import spans

CONTEXT = 16


@pytest.mark.parametrize("backbone", ["masked_mixer", "llama"])
@pytest.mark.parametrize("length", [2, 9, CONTEXT])
def test_a_text_that_fits_has_its_exact_entropies(
    backbone: str, length: int, make_eem: Callable, make_rows: Callable
) -> None:
    model = make_eem(backbone, backbone)
    (row,) = make_rows(length)
    expected = ExactEntropy(model)(input_ids=row[None]).values
    values = SlidingEntropy(model, stride=4)(input_ids=row[None]).values
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("backbone", ["masked_mixer", "llama"])
@pytest.mark.parametrize("stride", [1, 4, 7, CONTEXT - 1])
def test_equals_windows_cut_by_hand(
    backbone: str, stride: int, make_eem: Callable, make_rows: Callable, plain_nats: Callable
) -> None:
    """`S(BOS, x_s … x_j) - S(BOS, x_s … x_{j-1})`: blocks of `stride` tokens share the start that fits them all."""
    model = make_eem(backbone, backbone)
    rows = make_rows(37, CONTEXT + 1)
    mask = torch.arange(37) < torch.tensor([[37], [CONTEXT + 1]])
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    result = SlidingEntropy(model, stride)(input_ids=input_ids, attention_mask=mask)
    for row, values in zip(rows, result.rows()):
        assert values[0].isnan()
        for j in range(1, len(row)):
            blocks = max(0, -(-(j - (CONTEXT - 1)) // stride))  # after the first window, which holds n - 1 tokens
            last = min(CONTEXT - 1 + blocks * stride, len(row) - 1)
            start = max(last - (CONTEXT - 2), 1)
            window = torch.cat([row[:1], row[start : j + 1]])
            expected = plain_nats(model, window) - (plain_nats(model, window[:-1]) if len(window) > 2 else 0.0)
            torch.testing.assert_close(values[j], expected, rtol=0, atol=1e-4)


def test_a_long_text_is_never_held_as_windows(
    make_eem: Callable, make_rows: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million tokens at n = 1,024 they took 16 GB."""
    held, estimator = [], SlidingEntropy(make_eem("masked_mixer", "masked_mixer"), batch_tokens=256)
    rows = make_rows(3, 5000, 40)
    nats = exact.prefix_nats

    def noting(model: Any, windows: list, *others: Any) -> torch.Tensor:
        held.append(sum(map(len, windows)))
        return nats(model, windows, *others)

    monkeypatch.setattr(exact, "prefix_nats", noting)
    values = estimator.measure(estimator.rows_of_ids(rows))
    assert len(held) > 3 and max(held) <= 64 * 256
    monkeypatch.setattr(sliding, "_BATCHES_A_CALL", 10**6)
    torch.testing.assert_close(
        values, estimator.measure(estimator.rows_of_ids(rows)), rtol=0, atol=1e-4, equal_nan=True
    )
    assert len(held) > 3 and held[-1] == sum(held[:-1])


def test_the_widest_stride_cuts_disjoint_windows() -> None:
    assert list(spans(37, CONTEXT, CONTEXT - 1)) == [(1, 1, 15), (16, 16, 30), (22, 31, 36)]


@pytest.mark.parametrize("length", [2, 15, 16, 17, 100])
@pytest.mark.parametrize("stride", [1, 5, 15])
def test_each_token_is_scored_once_in_a_window_that_fits(length: int, stride: int) -> None:
    scored = []
    for start, first, last in spans(length, CONTEXT, stride):
        assert 1 <= start <= first <= last and last - start + 2 <= CONTEXT
        assert first == 1 or first - start >= min(first - 1, CONTEXT - 1 - stride)
        scored += range(first, last + 1)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("stride", [0, CONTEXT])
def test_strides_that_skip_text(stride: int, make_eem: Callable) -> None:
    with pytest.raises(ValueError, match="stride must lie in 1 … 15 for a context of 16 tokens"):
        SlidingEntropy(make_eem("llama", "llama"), stride)
