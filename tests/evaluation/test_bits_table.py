"""Bits of models on text: against sums by hand, against another bootstrap, against the published shorthand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from modeling_eem.bits import CodeLength
from modeling_eem.evaluation.bits_table import (
    ModelBits,
    bits_table,
    compressors_table,
    differences_table,
    documents_csv,
    measure_compressors,
)
from modeling_eem.evaluation.compressors import compressed_bits

N = 1024


def _windows(bits: list[float], num_bytes: list[int], code_bits: float = 0.0) -> list[CodeLength]:
    return [
        CodeLength(nll_nats=value * math.log(2), code_bits=code_bits, num_bytes=size, num_tokens=N - 1)
        for value, size in zip(bits, num_bytes)
    ]


def _model(bits: list[float], documents: list[int], name: str = "causal") -> ModelBits:
    return ModelBits(name, N, 0, documents, _windows(bits, [1000] * len(bits)))


def test_the_published_shorthand_of_the_main_model() -> None:
    """64 numbers of 4 bits over n = 1024 add 0.173 nats a token; of 8 bits 0.347 (method, bits)."""
    for bits_a_number, offset in ((4, 0.173), (8, 0.347)):
        windows = _windows([2.5 / math.log(2) * (N - 1)] * 3, [4000] * 3, code_bits=64 * bits_a_number)
        model = ModelBits("eem", N, 64, [0, 1, 2], windows)
        assert model.normalized_loss == pytest.approx(2.5 + offset, abs=5e-4)
        published = (N - 1) / 4000 * model.normalized_loss / math.log(2)
        assert model.published_bits_per_byte == pytest.approx(published)


def test_a_short_row_pays_more_honestly_than_in_the_shorthand() -> None:
    window = CodeLength(nll_nats=20.0, code_bits=256, side_bits=10, num_bytes=40, num_tokens=10)
    model = ModelBits("eem", N, 64, [0], [window])
    honest = (20 / math.log(2) + 256 + 10) / 40
    assert model.total.bits_per_byte == pytest.approx(honest)
    assert model.published_bits_per_byte < honest / 4


def test_documents_are_sums_of_their_rows() -> None:
    model = _model([100, 200, 300, 400], [7, 7, 3, 7])
    assert {document: length.total_bits for document, length in model.by_document.items()} == {
        7: pytest.approx(700),
        3: pytest.approx(300),
    }


def test_the_interval_is_that_of_a_bootstrap_over_documents() -> None:
    generator = np.random.default_rng(1)
    documents = generator.integers(0, 20, size=60).tolist()
    bits = generator.gamma(2.0, 1000, size=20)[documents]  # rows of a document are alike
    model = _model(bits.tolist(), documents)
    sums = np.array([[bits[np.array(documents) == d].sum(), 1000 * documents.count(d)] for d in set(documents)])
    drawn = sums[generator.integers(0, len(sums), size=(20000, len(sums)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    interval = model.interval()
    assert interval.low == pytest.approx(low, rel=0.02) and interval.high == pytest.approx(high, rel=0.02)
    rows_drawn = bits[generator.integers(0, 60, size=(20000, 60))].mean(1) / 1000
    assert np.quantile(rows_drawn, 0.025) > low + 0.05, "rows drawn one by one must give another interval"
    assert model.interval() == interval


def test_paired_differences_are_narrower_than_the_intervals_themselves() -> None:
    bits = np.random.default_rng(0).gamma(2.0, 1000, size=40)
    first, second = _model(bits.tolist(), list(range(40))), _model((bits + 100).tolist(), list(range(40)), "other")
    difference, spread = second.difference(first)
    assert difference == pytest.approx(0.1)
    assert (spread.low, spread.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert first.interval().high - first.interval().low > 0.1


def test_other_documents_have_no_difference_and_one_document_no_interval() -> None:
    difference, _ = _model([1.0, 2.0], [0, 1]).difference(_model([1.0, 2.0], [0, 2]))
    assert math.isnan(difference)
    assert _model([1.0, 2.0], [0, 0]).interval().text() == "–"


def test_compressors_whole_and_each_row() -> None:
    texts = [b"Call me Ishmael. " * 4, b"Some years ago, never mind how long precisely. " * 3]
    for item in measure_compressors(texts):
        size = sum(map(len, texts))
        assert item.whole == pytest.approx(compressed_bits(b"".join(texts))[item.name] / size)
        assert item.each_row == pytest.approx(sum(compressed_bits(text)[item.name] for text in texts) / size)


def test_tables_and_files_hold_the_numbers(tmp_path: Path) -> None:
    models = [_model([3000, 2000], [0, 1]), _model([3500, 2500], [0, 1], "other")]
    table = bits_table(models, "windows of up to 1,024 tokens")
    assert [row[4] for row in table.rows] == [pytest.approx(2.5), pytest.approx(3.0)]
    assert differences_table(models).rows[0][1] == pytest.approx(0.5)
    assert len(compressors_table(measure_compressors([b"a" * 100])).rows) == 5
    numbers = models[1].to_json(models[0])
    assert numbers["bits_per_byte_less_first"] == pytest.approx(0.5) and json.dumps(numbers)
    lines = documents_csv(models).splitlines()
    assert lines[0].startswith("model,document,nll_nats") and len(lines) == 5


def test_other_parts_of_the_same_documents_are_not_compared() -> None:
    """Rows cut at a number of tokens hold more text by some tokenizers than by others."""
    first = _model([100.0, 200.0], [0, 1])
    other = ModelBits("bytes", N, 0, [0, 1], _windows([100.0, 200.0], [1000, 400]))
    difference, spread = other.difference(first)
    assert math.isnan(difference) and spread.text() == "–"
