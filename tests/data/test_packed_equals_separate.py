"""Rows, collator and models together: packing and the side of the padding change no loss."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from modeling_eem import EEMForCausalLM
from modeling_eem.data import CausalCollator, RowFormat, pack, windows

VOCAB_SIZE, CONTEXT, PAD, BOS = 40, 16, 0, 1
MODELS = ["masked_mixer", "llama", "eem"]


@pytest.fixture
def row_format() -> RowFormat:
    return RowFormat(CONTEXT, BOS, (torch.arange(VOCAB_SIZE) > BOS).long())


@pytest.fixture
def documents() -> list[tuple[int, list[int]]]:
    return [(i, torch.randint(2, VOCAB_SIZE, (length,)).tolist()) for i, length in enumerate([3, 40, 9, 1, 5, 14, 7])]


@pytest.fixture
def collator() -> CausalCollator:
    return CausalCollator(pad_token_id=PAD, vocab_size=VOCAB_SIZE, max_length=CONTEXT)


@pytest.fixture
def model(
    request: pytest.FixtureRequest, backbone_config: Callable[..., Any], eem_config: Callable[..., Any]
) -> PreTrainedModel:
    config = eem_config() if request.param == "eem" else backbone_config(request.param)
    return AutoModelForCausalLM.from_config(config).eval()


def _summed_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: values for name, values in batch.items() if name != "document_ids"}
    return model(**inputs, use_cache=False, num_items_in_batch=1).loss


def _gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model", ["masked_mixer", "llama"], indirect=True)
def test_packed_rows_lose_what_separate_rows_lose(
    model: PreTrainedModel,
    side: str,
    collator: CausalCollator,
    row_format: RowFormat,
    documents: list[tuple[int, list[int]]],
) -> None:
    collator = replace(collator, padding_side=side)
    separate, packed = list(windows(documents, row_format)), list(pack(documents, row_format))
    assert len(packed) < len(separate)
    alone = sum(_summed_loss(model, collator([row])) for row in separate)
    together = _summed_loss(model, collator(packed))
    assert sum(row["num_bytes"] for row in packed) == sum(row["num_bytes"] for row in separate) == 79
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    for actual, expected in zip(_gradients(model, together), _gradients(model, alone), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["masked_mixer", "llama"], indirect=True)
def test_packed_rows_leak_without_their_positions(
    model: PreTrainedModel,
    collator: CausalCollator,
    row_format: RowFormat,
    documents: list[tuple[int, list[int]]],
) -> None:
    """What the test above would not see if the models ignored positions."""
    batch = collator(list(pack(documents, row_format)))
    leaked = _summed_loss(model, {name: values for name, values in batch.items() if name != "position_ids"})
    assert abs(leaked.item() - _summed_loss(model, batch).item()) > 0.1


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_the_side_of_the_padding_changes_no_loss(
    model: PreTrainedModel,
    collator: CausalCollator,
    row_format: RowFormat,
    documents: list[tuple[int, list[int]]],
) -> None:
    rows = list(windows(documents, row_format))
    right, left = collator(rows), replace(collator, padding_side="left")(rows)
    num_tokens = sum(len(row["input_ids"]) - 1 for row in rows)
    # as the Trainer counts them: behind the shift
    assert (right["labels"][:, 1:] != -100).sum() == (left["labels"][:, 1:] != -100).sum() == num_tokens == 79
    losses = [_summed_loss(model, batch) for batch in (right, left)]
    alone = sum(_summed_loss(model, collator([row])) for row in rows)
    assert [loss.item() for loss in losses] == pytest.approx([alone.item()] * 2, rel=1e-6)
    for actual, expected in zip(*(_gradients(model, loss) for loss in losses), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_eem_refuses_packed_rows(
    eem_config: Callable[..., Any],
    side: str,
    collator: CausalCollator,
    row_format: RowFormat,
    documents: list[tuple[int, list[int]]],
) -> None:
    batch = replace(collator, padding_side=side)(list(pack(documents, row_format)))
    with pytest.raises(ValueError, match="position_ids"):
        _summed_loss(EEMForCausalLM(eem_config()), batch)
