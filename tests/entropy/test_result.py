"""Tables, pages and data sets of per-token values: every view adds up to the tokens."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem.data import CausalCollator
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.texts import Rows, rows_of_ids, rows_of_texts

TEXTS = ("Call me Ishmael.\n\n  naïve 😀🦄 ok \t", "私は", "x")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "tokenizer")


def _entropies(rows: Rows) -> TokenEntropies:
    values = [torch.rand(len(ids_T), dtype=torch.float64) - 0.1 for ids_T in rows.ids]
    for values_T in values:
        values_T[0] = math.nan
    return TokenEntropies.of_rows(rows, values, "exact")


@pytest.fixture
def entropies(tokenizer: PreTrainedTokenizerBase) -> TokenEntropies:
    return _entropies(rows_of_texts(TEXTS, tokenizer))


def test_it_is_printed_in_a_line(entropies: TokenEntropies) -> None:
    scored = int((~entropies.values.isnan()).sum())
    mean = float(entropies.totals().sum()) / scored
    tokens = int(entropies.attention_mask.sum())
    told = f"TokenEntropies(exact: 3 rows, {tokens} tokens, {scored} of them scored, mean {mean:.4g} nats)"
    assert repr(entropies) == str(entropies) == told


@pytest.mark.parametrize("view", ["to_pandas", "bytes", "characters", "words"])
def test_every_view_adds_up_to_the_tokens(entropies: TokenEntropies, view: str) -> None:
    views = {"to_pandas": entropies.to_pandas, "bytes": entropies.bytes, "characters": entropies.characters}
    frame = views.get(view, entropies.words)(bits=True)
    sums = frame.groupby("row")["entropy_nats"].sum()
    np.testing.assert_allclose(sums, entropies.totals(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(frame["entropy_bits"] * math.log(2), frame["entropy_nats"])
    assert list(frame.groupby("row")["index"].agg(list)) == [list(range(n)) for n in frame.groupby("row").size()]


def test_tokens_stand_beside_their_text(entropies: TokenEntropies) -> None:
    frame = entropies.to_pandas()
    assert len(frame) == int(entropies.attention_mask.sum())
    for row, text in enumerate(text.encode() for text in TEXTS):
        tokens = frame[frame["row"] == row]
        assert tokens["id"].tolist() == entropies.ids[row][entropies.attention_mask[row]].tolist()
        assert tokens["entropy_nats"].isna().tolist() == [True] + [False] * (len(tokens) - 1)
        spans = zip(tokens["start_byte"], tokens["end_byte"])
        assert tokens["token"].tolist() == [text[a:b].decode("utf-8", "backslashreplace") for a, b in spans]
        assert tokens["end_byte"].iloc[-1] == len(text)


def test_characters_and_bytes_are_the_text(entropies: TokenEntropies) -> None:
    characters, data = entropies.characters(), entropies.bytes()
    for row, text in enumerate(TEXTS):
        assert "".join(characters["character"][characters["row"] == row]) == text
        assert bytes(data["byte"][data["row"] == row].tolist()) == text.encode()


def test_a_window_may_end_inside_a_character(tokenizer: PreTrainedTokenizerBase) -> None:
    """The rows hold the last byte of 私, は, and the first two bytes of 私."""
    ids = tokenizer("私は私", add_special_tokens=False)["input_ids"]
    assert len(ids) == 9  # a token is a byte
    entropies = _entropies(rows_of_ids([torch.tensor([0, *ids[2:8]])], tokenizer))
    assert entropies.characters()["character"].tolist() == ["\\x81", "は", "\\xe7", "\\xa7"]
    assert entropies.words()["word"].tolist() == ["\\x81は\\xe7\\xa7"]
    assert entropies.words()["entropy_nats"].sum() == pytest.approx(entropies.totals().item(), abs=1e-12)


def test_what_measures_no_entropy_says_so(entropies: TokenEntropies) -> None:
    distances = replace(entropies, unit="logit L1 distance", method="occlusion")
    assert "logit_l1_distance" in distances.to_pandas().columns
    assert "entropy_nats" not in distances.words().columns
    for view in (distances.bits, lambda: distances.words(bits=True), lambda: distances.to_html(bits=True)):
        with pytest.raises(ValueError, match="bits need entropies in nats; occlusion measures logit L1 distance"):
            view()


def test_without_a_tokenizer_there_are_ids_and_values_only() -> None:
    entropies = _entropies(Rows([torch.tensor([0, 5, 6])]))
    assert entropies.to_pandas().columns.tolist() == ["row", "index", "id", "entropy_nats"]
    assert entropies.to_pandas()["id"].tolist() == [0, 5, 6]
    for view in (entropies.words, entropies.characters, entropies.bytes, entropies.to_html):
        with pytest.raises(ValueError, match="pass tokenizer= to the estimator"):
            view()


def test_a_table_survives_its_file(entropies: TokenEntropies, tmp_path: Path) -> None:
    path = entropies.to_tsv(tmp_path / "new" / "tokens.tsv", bits=True)
    numbers = dict.fromkeys(("entropy_nats", "entropy_bits"), "NaN")
    read = pd.read_csv(path, sep="\t", keep_default_na=False, na_values=numbers)
    pd.testing.assert_frame_equal(read, entropies.to_pandas(bits=True))


def test_the_data_set_is_what_the_collator_takes(entropies: TokenEntropies) -> None:
    dataset = entropies.to_dataset()
    assert dataset.column_names == ["input_ids", "token_entropies"] and len(dataset) == 3
    assert dataset.info.description == "token_entropies: nats, method exact"
    batch = CausalCollator(pad_token_id=1, vocab_size=8000, max_length=64)(list(dataset))
    torch.testing.assert_close(batch["input_ids"][0], entropies.ids[0])
    torch.testing.assert_close(batch["token_entropies"], entropies.values.float(), equal_nan=True)


def test_the_heat_map_shows_the_whole_text(entropies: TokenEntropies) -> None:
    page = entropies.to_html(bits=True, title="A <title>")
    assert "bits a token" in page and "A &lt;title&gt;" in page and "😀" in page
    assert page.count("data-tip=") == int(entropies.attention_mask.sum())
    assert all(character in page for character in "Ishmael私はx"), "every text is drawn, not the first alone"
    one = entropies.to_html(row=1)
    assert "nats a token" in one and one.count("data-tip=") == int(entropies.attention_mask[1].sum())


def test_text_behind_the_last_token_is_shown_too() -> None:
    """A tokenizer of words has no token for white space."""
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "ship": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    rows = rows_of_texts(["a ship\n\n  "], PreTrainedTokenizerFast(tokenizer_object=words, bos_token="[UNK]"))
    assert b"".join(_entropies(rows)._shown_tokens(0)) == b"a ship\n\n  "


def test_min_max_is_of_a_document_and_keeps_nan() -> None:
    values = torch.tensor([[math.nan, 2.0, 4.0, 3.0, 5.0, 5.0]], dtype=torch.float64)
    entropies = TokenEntropies(torch.zeros(1, 6).long(), values, torch.ones(1, 6).bool(), "exact")
    documents = torch.tensor([[0, 0, 0, 0, 1, 1]])
    expected = torch.tensor([[math.nan, 0.0, 1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(entropies.normalized(documents), expected, equal_nan=True)
    assert entropies.normalized()[0, 4] == 1
