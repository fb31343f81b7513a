"""Estimates of a text, cut into tokens, words and bytes, and beside one another."""

import io
import math
from dataclasses import replace
from threading import Event

import numpy as np
import pandas as pd
import pytest
import torch

from modeling_eem.bits import window_length_bits
from modeling_eem.codec import Codec
from modeling_eem.data import CausalCollator, RowFormat, encode_text, windows
from modeling_eem.entropy import CausalEntropy, ExactEntropy, OcclusionEntropy
from modeling_eem.evaluation.code_length import held_out_code_length
from modeling_eem.view.estimates import (
    PIECES,
    Estimate,
    Stopped,
    check_text,
    comparison,
    estimate_text,
    heat_panels,
    pieces_of,
    read_text,
    scales_of,
    to_tsv,
)
from modeling_eem.view.models import ViewedModel

SHORT = "The sea was calm"
LONG = "The sea was calm and the wind was gone.\nA ship came home at last, and no one on it spoke a word of rain."


@pytest.fixture(scope="module")
def estimates(viewed: dict[str, ViewedModel]) -> list[Estimate]:
    return [
        estimate_text(model, method, LONG)
        for model in viewed.values()
        for method in model.methods
        if method != "sliding"
    ]


def test_a_text_that_fits_has_the_estimators_own_values(viewed: dict[str, ViewedModel]) -> None:
    eem, causal = viewed["eem"], viewed["causal"]
    for model, method, estimator in (
        (eem, "exact", ExactEntropy(eem.eem)),
        (eem, "occlusion", OcclusionEntropy(eem.eem, "loss")),
        (causal, "causal", CausalEntropy(causal.model)),
    ):
        shown = estimate_text(model, method, SHORT).entropies
        expected = estimator([SHORT], model.tokenizer)
        torch.testing.assert_close(shown.values, expected.values, equal_nan=True)
        assert shown.unit == expected.unit and shown.texts == expected.texts


@pytest.mark.parametrize("kind, method", [("eem", "exact"), ("eem", "occlusion"), ("causal", "causal")])
def test_work_stops_at_the_next_forward_pass(viewed: dict[str, ViewedModel], kind: str, method: str) -> None:
    stopped, passes = Event(), []

    def stop_soon(*_: object) -> None:
        passes.append(stopped.is_set())
        stopped.set()

    model = viewed[kind].model.base_model
    handle = model.register_forward_pre_hook(stop_soon)
    with pytest.raises(Stopped):
        estimate_text(viewed[kind], method, LONG, stopped=stopped)
    handle.remove()
    assert len(passes) < 3
    estimate_text(viewed[kind], method, SHORT)  # nothing is left that stops it


def test_a_longer_text_is_read_window_by_window(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    estimate = estimate_text(eem, "exact", LONG)
    ids_T, values_T = estimate.entropies.ids[0], estimate.entropies.values[0]
    assert len(ids_T) > 31 and values_T[0].isnan() and not values_T[1:].isnan().any()
    second = torch.cat([ids_T[:1], ids_T[16:31]])
    expected = ExactEntropy(eem.eem)(input_ids=second[None]).values[0, 1:]
    torch.testing.assert_close(values_T[16:31], expected, atol=1e-4, rtol=1e-4)
    count = math.ceil((len(ids_T) - 1) / 15)
    assert estimate.notes[0].startswith(f"{count} windows of up to 16 tokens")


def test_causal_values_slide_and_keep_half_of_the_context(viewed: dict[str, ViewedModel]) -> None:
    causal = viewed["causal"]
    shown = estimate_text(causal, "causal", LONG).entropies.values
    expected = CausalEntropy(causal.model, stride=8)([LONG], causal.tokenizer).values
    torch.testing.assert_close(shown, expected, equal_nan=True)


def test_bits_per_byte_charges_the_code_of_every_window(viewed: dict[str, ViewedModel]) -> None:
    estimate = estimate_text(viewed["causal"], "causal", LONG)
    assert estimate.bits_per_byte == pytest.approx(estimate.total / math.log(2) / len(LONG))
    config = viewed["eem"].eem.config
    config.code_dtype = "int8"
    try:
        count = math.ceil((estimate.entropies.ids.shape[1] - 1) / 15)
        with_code = estimate_text(viewed["eem"], "exact", LONG)
        lengths = [16] * (count - 1) + [with_code.entropies.ids.shape[1] - 15 * (count - 1)]
        told = sum(window_length_bits(length, 16) for length in lengths)
        assert with_code.extra_bits == pytest.approx(count * (6 * 8 + 32) + told)
    finally:
        config.code_dtype = None
    assert estimate_text(viewed["eem"], "exact", LONG).bits_per_byte is None, "no one knows what the code takes"
    assert estimate_text(viewed["eem"], "occlusion", LONG).bits_per_byte is None


@pytest.mark.parametrize(
    "kind, method, text", [("eem", "exact", SHORT), ("eem", "exact", LONG), ("causal", "causal", SHORT)]
)
def test_bits_per_byte_are_those_of_the_evaluation(
    kind: str, method: str, text: str, viewed: dict[str, ViewedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lengths of the windows were missing."""
    model = viewed[kind]
    if kind == "eem":
        monkeypatch.setattr(model.eem.config, "code_dtype", "int8")
    documents = [(0, encode_text(model.tokenizer, text))]
    rows = list(windows(documents, RowFormat.from_tokenizer(model.tokenizer, 16)))
    collator = CausalCollator(pad_token_id=0, vocab_size=len(model.tokenizer), max_length=16)
    estimate = estimate_text(model, method, text)
    expected = held_out_code_length(model.model, rows, collator).bits_per_byte
    assert estimate.bits_per_byte == pytest.approx(expected, rel=1e-4)
    assert estimate.extra_name == {"eem": "codes and lengths", "causal": "length"}[kind]


def test_a_text_that_slides_says_that_its_length_is_not_counted(viewed: dict[str, ViewedModel]) -> None:
    estimate = estimate_text(viewed["causal"], "causal", LONG)
    assert estimate.extra_bits == 0 and "do not count its length" in estimate.notes[-1]
    assert estimate_text(viewed["causal"], "causal", SHORT).notes == ()


@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_cover_the_text_and_add_up(pieces: str, estimates: list[Estimate]) -> None:
    for estimate in estimates:
        frame = pieces_of(estimate.entropies, pieces, bits=False)
        assert frame["start_byte"].iloc[0] == 0 and frame["end_byte"].iloc[-1] == len(LONG)
        assert (frame["start_byte"].to_numpy()[1:] == frame["end_byte"].to_numpy()[:-1]).all()
        assert frame["value"].sum() == pytest.approx(estimate.total)


def test_bits_are_nats_over_ln_2_and_other_units_stay(viewed: dict[str, ViewedModel]) -> None:
    loss, l1 = (estimate_text(viewed["eem"], "occlusion", LONG, metric) for metric in ("loss", "l1"))
    for estimate, factor in ((loss, math.log(2)), (l1, 1.0)):
        bits, nats = (pieces_of(estimate.entropies, "words", in_bits)["value"] for in_bits in (True, False))
        np.testing.assert_allclose(bits * factor, nats)
    assert [panel.unit for panel in heat_panels([loss, l1], "tokens", True)] == ["bits", "logit L1 distance"]


def test_panels_show_the_whole_text_in_comparable_colours(estimates: list[Estimate]) -> None:
    for panel in heat_panels(estimates, "tokens", bits=True):
        assert b"".join(panel.tokens) == LONG.encode()
    scales = dict(zip((estimate.name for estimate in estimates), scales_of(estimates, "tokens", True)))
    assert scales["eem-16 · exact"] == scales["llama-16 · causal"] == scales["codec · stored"]
    assert scales["eem-16 · occlusion (loss)"] != scales["eem-16 · exact"]


def test_stored_bits_are_those_of_the_file(viewed: dict[str, ViewedModel]) -> None:
    codec = viewed["codec"].model
    assert isinstance(codec, Codec) and codec.model is not None
    text = LONG * 2
    estimate = estimate_text(viewed["codec"], "stored", text)
    assert estimate.bits_per_byte == pytest.approx(8 * len(codec.compress(text.encode())) / len(text))
    assert estimate.extra_bits is not None and estimate.extra_bits > 0


def test_the_comparison_has_a_line_a_piece_and_a_column_an_estimate(estimates: list[Estimate]) -> None:
    table = comparison(estimates, "words", bits=True)
    assert list(table["word"])[:3] == ["The", " sea", " was"]
    assert list(table.columns[3:5]) == ["eem-16 · exact (bits)", "eem-16 · occlusion (loss) (bits)"]
    assert len(table.columns) == 3 + len(estimates) and not table.isna().any().any()
    again = pd.read_csv(io.StringIO(to_tsv(table)), sep="\t", keep_default_na=False, na_values=["NaN"])
    np.testing.assert_allclose(again.iloc[:, 3:], table.iloc[:, 3:])
    assert list(again["word"]) == list(table["word"])


def test_tokens_that_are_cut_elsewhere_have_lines_of_their_own(estimates: list[Estimate]) -> None:
    by_name = {estimate.name: estimate for estimate in estimates}
    table = comparison([by_name["llama-16 · causal"], by_name["codec · stored"]], "tokens", bits=False)
    for column, estimate in zip(table.columns[3:], ("llama-16 · causal", "codec · stored")):
        assert table[column].sum() == pytest.approx(by_name[estimate].total)


def test_large_and_empty_texts_are_refused_with_the_limit() -> None:
    check_text("a" * 20, 20)
    with pytest.raises(ValueError, match="the text has 21 bytes, and this page takes 20 at most"):
        check_text("ä" * 10 + "a", 20)
    with pytest.raises(ValueError, match="no text yet"):
        check_text(" \n", 20)
    assert read_text("a.txt", "\ufeffä\r\nb".encode(), 20) == "ä\nb"
    with pytest.raises(ValueError, match="a.txt has 21 bytes, and this page takes 20 at most"):
        read_text("a.txt", b"a" * 21, 20)
    with pytest.raises(ValueError, match="a.txt is not UTF-8 at byte 1"):
        read_text("a.txt", b"a\xff", 20)


def test_text_that_is_not_scored_has_no_bits_a_byte(viewed: dict[str, ViewedModel]) -> None:
    """As the first token of a model without BOS."""
    estimate = estimate_text(viewed["causal"], "causal", SHORT)
    assert estimate.bits_per_byte is not None
    values = estimate.entropies.values.clone()
    values[0, 1] = math.nan
    without_first = replace(estimate, entropies=replace(estimate.entropies, values=values))
    assert without_first.bits_per_byte is None
