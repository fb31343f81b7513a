"""The collator: what it pads with, what it cuts, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from modeling_eem.data import CausalCollator

PAD = 1
LONG = {"input_ids": [0, 2, 3, 4], "token_entropies": [float("nan"), 0.5, 1.5, 2.5], "document_ids": [7] * 4}
SHORT = {"input_ids": [0, 5], "token_entropies": [float("nan"), 0.25], "document_ids": [8] * 2, "num_bytes": 9}


@pytest.fixture
def collator() -> CausalCollator:
    return CausalCollator(pad_token_id=PAD, vocab_size=6, max_length=8)


def _lists(batch: dict[str, torch.Tensor]) -> dict[str, list[list[int]]]:
    return {name: values.tolist() for name, values in batch.items() if not values.is_floating_point()}


def test_padding_is_on_the_right_by_default(collator: CausalCollator) -> None:
    batch = collator([LONG, SHORT])
    assert _lists(batch) == {
        "input_ids": [[0, 2, 3, 4], [0, 5, PAD, PAD]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [[-100, 2, 3, 4], [-100, 5, -100, -100]],
        "document_ids": [[7, 7, 7, 7], [8, 8, -1, -1]],
    }
    nan = float("nan")
    expected = torch.tensor([[nan, 0.5, 1.5, 2.5], [nan, 0.25, nan, nan]])
    torch.testing.assert_close(batch["token_entropies"], expected, equal_nan=True)


def test_padding_is_on_the_left_if_asked(collator: CausalCollator) -> None:
    batch = replace(collator, padding_side="left")([LONG, SHORT])
    assert _lists(batch) == {
        "input_ids": [[0, 2, 3, 4], [PAD, PAD, 0, 5]],
        "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]],
        "labels": [[-100, 2, 3, 4], [-100, -100, -100, 5]],
        "document_ids": [[7, 7, 7, 7], [-1, -1, 8, 8]],
    }
    assert batch["token_entropies"][1].isnan().tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "changes, width",
    [
        ({}, 4),
        ({"padding": "max_length"}, 8),
        ({"pad_to_multiple_of": 3}, 6),
        ({"pad_to_multiple_of": 4}, 4),
        ({"pad_to_multiple_of": 7, "max_length": 5}, 5),
    ],
)
def test_the_width_follows_the_padding_options(collator: CausalCollator, changes: dict[str, Any], width: int) -> None:
    batch = replace(collator, **changes)([LONG, SHORT])
    assert {tuple(values.shape) for values in batch.values()} == {(2, width)}


def test_packed_rows_have_positions_and_no_mask(collator: CausalCollator) -> None:
    packed = {"input_ids": [0, 2, 0, 3], "position_ids": [0, 1, 0, 1], "labels": [-100, 2, -100, 3]}
    single = {"input_ids": [0, 4], "position_ids": [0, 1], "labels": [-100, 4]}
    assert _lists(collator([packed, single])) == {
        "input_ids": [[0, 2, 0, 3], [0, 4, PAD, PAD]],
        "position_ids": [[0, 1, 0, 1], [0, 1, 0, 0]],
        "labels": [[-100, 2, -100, 3], [-100, 4, -100, -100]],
    }


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_any_sequence_of_numbers(collator: CausalCollator, kind: type) -> None:
    batch = collator([{"input_ids": kind([0, 2, 3])}, {"input_ids": kind([0, 5])}])
    assert batch["input_ids"].tolist() == [[0, 2, 3], [0, 5, PAD]]
    assert {name: values.dtype for name, values in batch.items()} == dict.fromkeys(batch, torch.int64)


def test_a_column_is_float_if_any_row_says_so(collator: CausalCollator) -> None:
    rows = [{"input_ids": [0, 2, 3], "token_entropies": [0, 0.5, 1]}, {"input_ids": [0, 2], "token_entropies": [0, 1]}]
    batch = collator(rows)
    torch.testing.assert_close(
        batch["token_entropies"], torch.tensor([[0, 0.5, 1], [0, 1, float("nan")]]), equal_nan=True
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_rows_bring_is_replaced(collator: CausalCollator, side: str) -> None:
    left = {"input_ids": [3, 3, 0, 2], "attention_mask": [0, 0, 1, 1], "labels": [9, 9, -100, 2]}
    right = {"input_ids": [0, 2, 3], "attention_mask": [1, 1, 0], "labels": [-100, 2, 9]}
    clean = [{"input_ids": [0, 2]}] * 2
    collator = replace(collator, padding_side=side)
    assert _lists(collator([left, right])) == _lists(collator(clean))


def test_a_pad_token_inside_text_is_text(collator: CausalCollator) -> None:
    batch = collator([{"input_ids": [0, PAD, 2]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1]] and batch["labels"].tolist() == [[-100, PAD, 2]]


def _rows(count: int, length: int = 8) -> list[dict[str, list[int]]]:
    return [{"input_ids": row} for row in torch.randint(2, 6, (count, length)).tolist()]


def test_prefixes_are_uniform_from_two_tokens_on(collator: CausalCollator) -> None:
    rows = _rows(4000)
    batch = replace(collator, random_prefix_probability=0.25)(rows)
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"][lengths == 8].tolist() == [
        row["input_ids"] for row, length in zip(rows, lengths) if length == 8
    ]
    assert (batch["attention_mask"].diff(dim=1) <= 0).all(), "a prefix is kept, not any piece"
    assert (batch["labels"].ne(-100).sum(1) == lengths - 1).all()
    shares = lengths.bincount(minlength=9) / len(rows)
    assert shares[:2].tolist() == [0, 0]
    expected = torch.full((7,), 0.25 / 7)
    expected[-1] += 0.75
    torch.testing.assert_close(shares[2:], expected, atol=0.02, rtol=0)
    everything = replace(collator, random_prefix_probability=1.0)(rows)["attention_mask"].sum(1)
    torch.testing.assert_close(everything.bincount()[2:] / len(rows), torch.full((7,), 1 / 7), atol=0.02, rtol=0)


def test_prefixes_depend_on_the_batch_alone(collator: CausalCollator) -> None:
    """Not on the global generator: a resumed run, whose loader reads ahead, cuts the same rows."""
    collator, rows = replace(collator, random_prefix_probability=0.5), _rows(64)
    state = torch.get_rng_state()
    first = collator(rows)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert _lists(collator(rows)) == _lists(first)
    assert not torch.equal(collator(rows[::-1])["attention_mask"].flip(0), first["attention_mask"])
    assert replace(collator, random_prefix_probability=0.0)(rows)["attention_mask"].all()


def test_a_resumed_run_cuts_the_same_prefixes(collator: CausalCollator, tmp_path: Path) -> None:
    """Bit-identical weights; drawn from the global generator, the prefixes after the checkpoint would be others."""
    collator, rows = replace(collator, random_prefix_probability=0.7), _rows(24)
    config = LlamaConfig(
        vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, pad_token_id=PAD
    )
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        max_steps=9,  # across the end of an epoch
        save_steps=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )

    def train(checkpoint: Path | None) -> torch.Tensor:
        set_seed(0)
        trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=rows, data_collator=collator)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return torch.nn.utils.parameters_to_vector(trainer.model.parameters())

    whole = train(None)
    assert torch.equal(train(tmp_path / "checkpoint-4"), whole)


def test_prefixes_take_all_columns_and_leave_short_rows(collator: CausalCollator) -> None:
    collator = replace(collator, random_prefix_probability=1.0)
    rows = [{**row, "document_ids": row["input_ids"], "token_entropies": [0.5] * 8} for row in _rows(32)]
    batch = collator(rows)
    is_real = batch["attention_mask"].bool()
    assert not is_real.all() and torch.equal(batch["document_ids"][is_real], batch["input_ids"][is_real])
    assert torch.equal(batch["token_entropies"].isnan(), ~is_real) and (batch["document_ids"][~is_real] == -1).all()
    assert collator([{"input_ids": [0, 2]}, {"input_ids": [0]}])["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_mask_alone_says_what_padding_is() -> None:
    """In a row [BOS, EOS] of a tokenizer whose BOS, EOS and pad are one id, no token is padding."""
    batch = CausalCollator(0, 6, 8)([{"input_ids": [0, 0], "attention_mask": [1, 1]}, {"input_ids": [0, 2, 3, 0]}])
    assert batch["input_ids"].tolist() == [[0, 0, 0, 0], [0, 2, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["labels"][0].tolist() == [-100, 0, -100, -100]


OK = {"input_ids": [0, 2, 3]}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"labels": [0, 2]}, r"no input_ids, only \['labels'\]"),
        ({"input_ids": []}, "row 1 is empty"),
        ({"input_ids": [PAD, PAD]}, "row 1 is all padding"),
        ({"input_ids": [0, 2], "attention_mask": [0, 0]}, "row 1 is all padding"),
        ({"input_ids": [0, 2, 3], "attention_mask": [1, 0, 1]}, "row 1: its attention_mask has a hole"),
        ({"input_ids": [0] + [2] * 8}, "row 1 has 9 tokens, more than max_length = 8"),
        ({"input_ids": [0, 6]}, "row 1: input_ids holds 6, outside the vocabulary of 6"),
        ({"input_ids": [0, -1]}, "row 1: input_ids holds -1, outside"),
        ({"input_ids": [0, -100]}, "row 1: input_ids holds -100, outside"),
        ({"input_ids": [0.0, 2.0]}, "row 1: input_ids must be integers"),
        ({"input_ids": [0, 2], "labels": [-100, 6]}, "row 1: labels holds 6, outside"),
        ({"input_ids": [0, 2], "labels": [-100, -1]}, "row 1: labels holds -1, outside"),
        ({"input_ids": [0, 2], "labels": [0.5, 1.0]}, "row 1: labels must be integers"),
        ({"input_ids": [0, 2], "labels": [2]}, "row 1: labels has 1 values for 2 input_ids"),
        ({"input_ids": [0, 2], "attention_mask": [1]}, "row 1: attention_mask has 1 values"),
        ({"input_ids": [[0, 2]]}, r"row 1: input_ids must hold one number a token, not shape \(1, 2\)"),
        ({"input_ids": [0, 2], "words": ["a", "b"]}, "row 1: words must hold numbers"),
        ({"input_ids": [0, 2], "words": [None, None]}, "row 1: words must hold numbers"),
        ({"input_ids": [0, 2], "words": [[1], [2, 3]]}, "row 1: words must hold numbers"),
        ({"input_ids": [0, 2**70]}, "row 1: input_ids must hold numbers"),
        ({"input_ids": [0, 2], "document_ids": [3, 3]}, "same columns.*document_ids"),
        ({"input_ids": [0, 2], "position_ids": [0, 1]}, "same columns.*position_ids"),
    ],
)
def test_bad_rows_are_named(collator: CausalCollator, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collator([OK, row])


def test_a_batch_without_rows_is_refused(collator: CausalCollator) -> None:
    with pytest.raises(ValueError, match="no rows"):
        collator([])


@pytest.mark.parametrize(
    "name, value",
    [
        ("pad_token_id", 6),
        ("pad_token_id", -1),
        ("max_length", 0),
        ("padding_side", "both"),
        ("padding", "none"),
        ("pad_to_multiple_of", 0),
        ("random_prefix_probability", 1.5),
        ("random_prefix_probability", -0.1),
    ],
)
def test_bad_attributes_are_named(collator: CausalCollator, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        replace(collator, **{name: value})
