"""An entropy estimation model's code of a text, changed and read again."""

import pytest
import torch

from modeling_eem.data.tokenizer import token_bytes
from modeling_eem.entropy import OcclusionEntropy
from modeling_eem.view.codes import encode_text, reach, read_code
from modeling_eem.view.models import ViewedModel

LONG = "The sea was calm and the wind was gone. A ship came home at last, and no one on it spoke a word of rain."


def test_a_text_is_encoded_as_far_as_the_context_goes(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    encoded = encode_text(eem, LONG)
    whole = eem.tokenizer(LONG, add_special_tokens=False).input_ids
    assert encoded.rows.ids[0].tolist() == [eem.tokenizer.bos_token_id, *whole[:15]]
    assert encoded.tokens_left == len(whole) - 15
    assert encoded.rows.texts is not None and LONG.encode().startswith(encoded.rows.texts[0])
    expected = eem.eem.encode(encoded.rows.ids[0][None])[0]
    torch.testing.assert_close(torch.tensor(encoded.code), expected)


def test_what_the_code_saves_is_occlusion(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    encoded = encode_text(eem, LONG)
    told, alone, saved = (estimate.entropies.values for estimate in read_code(eem, encoded, encoded.code).estimates)
    expected = OcclusionEntropy(eem.eem, "loss")(input_ids=encoded.rows.ids[0][None]).values
    torch.testing.assert_close(saved, expected, atol=1e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(alone - told, saved, equal_nan=True)


def test_another_code_says_something_else(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    encoded = encode_text(eem, LONG)
    own, other = read_code(eem, encoded, encoded.code), read_code(eem, encoded, [9.0, *encoded.code[1:]])
    assert other.code[0] == 9.0 and other.code[1:] == own.code[1:]
    assert own.estimates[0].total != other.estimates[0].total
    assert own.estimates[1].total == other.estimates[1].total, "without the code no code matters"
    with pytest.raises(ValueError, match="code"):
        read_code(eem, encoded, encoded.code[:-1])


def test_the_regenerated_text_is_that_of_generate(viewed: dict[str, ViewedModel]) -> None:
    eem = viewed["eem"]
    encoded = encode_text(eem, LONG)
    reading = read_code(eem, encoded, encoded.code)
    ids = eem.eem.generate(code=torch.tensor([encoded.code]), max_new_tokens=15, do_sample=False)[0, 1:]
    written = b"".join(token_bytes(eem.tokenizer, ids.tolist())).decode("utf-8", "backslashreplace")
    assert "".join(run.text for run in reading.runs) == written
    assert reading.num_tokens == 15
    assert reading.num_same == int((ids == encoded.rows.ids[0][1:]).sum())


def test_axes_end_at_round_numbers_beyond_the_code() -> None:
    assert [reach(numbers) for numbers in ([], [0.1], [-1.0], [3.0, -20.0], [1e4])] == [1, 1, 2, 30, 1.5e4]
