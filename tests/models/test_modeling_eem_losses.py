"""Losses of entropy estimation models, and the proof that information crosses the bottleneck."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem import EEMForCausalLM

INTRODUCTIONS = ["token", "embedding", "combination"]


@pytest.fixture(params=[(decoder, intro) for decoder in ("masked_mixer", "llama") for intro in INTRODUCTIONS], ids=str)
def eem(request: pytest.FixtureRequest, eem_config: Callable[..., Any]) -> EEMForCausalLM:
    decoder, introduction = request.param
    return EEMForCausalLM(eem_config(decoder, decoder, introduction)).eval()


@pytest.fixture
def scored() -> dict[str, Tensor]:
    """A left-padded batch with labels, some of them -100."""
    input_ids = torch.randint(2, 40, (4, 16))
    mask = torch.ones_like(input_ids)
    mask[0, :5] = 0
    labels = input_ids.masked_fill((mask == 0) | (torch.rand(4, 16) < 0.2), -100)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def test_loss_in_training_and_evaluation_is_cross_entropy(eem: EEMForCausalLM, scored: dict[str, Tensor]) -> None:
    kept = eem(**scored)
    expected = F.cross_entropy(kept.logits[:, :-1].flatten(0, 1), scored["labels"][:, 1:].flatten())
    expected_grads = torch.autograd.grad(expected, list(eem.parameters()), retain_graph=True)
    eem.train()
    chunked, asked = eem(**scored), eem(**scored, output_logits=True)
    assert chunked.logits is None and chunked.past_key_values is None and asked.logits is not None
    for loss in (kept.loss, chunked.loss, asked.loss):
        torch.testing.assert_close(loss, expected)
        grads = torch.autograd.grad(loss, list(eem.parameters()))
        torch.testing.assert_close(grads, expected_grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_token_losses_stand_at_the_token_they_describe(
    eem: EEMForCausalLM, scored: dict[str, Tensor], is_training: bool
) -> None:
    """In nats; NaN at the first token and where the label is -100; their mean is the loss."""
    eem.train(is_training)
    output = eem(**scored, output_token_losses=True, output_logits=True)
    losses, labels = output.token_losses, scored["labels"]
    unscored = labels == -100
    unscored[:, 0] = True
    assert torch.equal(losses.isnan(), unscored) and losses.dtype == torch.float32 and not losses.requires_grad
    log_probs = output.logits.log_softmax(-1)
    for row, token in (~unscored).nonzero():
        expected = -log_probs[row, token - 1, labels[row, token]]
        torch.testing.assert_close(losses[row, token], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.nanmean(), output.loss)
    chunked = eem(**scored, output_token_losses=True, output_logits=False)
    torch.testing.assert_close(chunked.token_losses, losses, equal_nan=True)
    assert eem(**scored).token_losses is None
    with pytest.raises(ValueError, match="output_token_losses=True needs labels"):
        eem(scored["input_ids"], code=output.code, output_token_losses=True)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_loss_weight_scales_its_own_tokens_loss(
    eem: EEMForCausalLM, scored: dict[str, Tensor], is_training: bool
) -> None:
    """A weight is its own token's; one changes nothing, zero is a label of -100 but for the denominator."""
    eem.train(is_training)
    labels = scored["labels"]
    plain = eem(**scored, output_token_losses=True)
    torch.testing.assert_close(eem(**scored, loss_weights=torch.ones(4, 16)).loss, plain.loss)
    weights = torch.rand(4, 16)
    expected = (plain.token_losses * weights).nansum() / (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(eem(**scored, loss_weights=weights).loss, expected)
    keep = (torch.rand(4, 16) < 0.5).float()
    dropped = eem(**{**scored, "labels": labels.masked_fill(keep == 0, -100)})
    num_kept = ((labels != -100) & (keep == 1))[:, 1:].sum()
    by_weight = eem(**scored, loss_weights=keep)
    torch.testing.assert_close(by_weight.loss, dropped.loss * num_kept / (labels[:, 1:] != -100).sum())
    for loss in (by_weight.loss, dropped.loss):
        loss.backward()
    assert all(p.grad.isfinite().all() for p in eem.parameters())


def test_labels_may_be_shifted_by_the_caller(eem: EEMForCausalLM, scored: dict[str, Tensor]) -> None:
    shifted = F.pad(scored["labels"][:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(eem(**scored, shift_labels=shifted).loss, eem(**scored).loss)


def test_the_denominator_can_be_given(eem: EEMForCausalLM, scored: dict[str, Tensor]) -> None:
    """Micro-batches over the labelled tokens of all add up to the whole batch's loss."""
    num_items = (scored["labels"][:, 1:] != -100).sum()
    for is_training in (True, False):
        eem.train(is_training)
        parts = [{name: x[rows] for name, x in scored.items()} for rows in (slice(0, 1), slice(1, 4))]
        total = sum(eem(**part, num_items_in_batch=num_items).loss for part in parts)
        torch.testing.assert_close(total, eem(**scored).loss)


def test_the_loss_is_float32_under_bf16_autocast(eem: EEMForCausalLM, scored: dict[str, Tensor]) -> None:
    expected = eem(**scored).loss
    for is_training in (True, False):
        eem.train(is_training)
        with torch.autocast("cpu", torch.bfloat16):
            loss = eem(**scored).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
        loss.backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in eem.parameters())


def test_logits_to_keep(eem: EEMForCausalLM, scored: dict[str, Tensor]) -> None:
    whole = eem(**scored)
    for keep, kept in ((1, slice(-1, None)), (torch.tensor([0, 3]), [0, 3])):
        output = eem(**scored, logits_to_keep=keep)
        torch.testing.assert_close(output.logits, whole.logits[:, kept])
        torch.testing.assert_close(output.loss, whole.loss)


# Learning

NUM_SYMBOLS = 16


def _random_rows(batch_size: int) -> dict[str, Tensor]:
    """`[BOS, a, b, c]`, independent and uniform: a causal model cannot do better than log 16 nats a token."""
    symbols = torch.randint(2, 2 + NUM_SYMBOLS, (batch_size, 3))
    input_ids = F.pad(symbols, (1, 0), value=1)
    return {"input_ids": input_ids, "labels": input_ids}


def _random_keys(batch_size: int) -> dict[str, Tensor]:
    """A random pair of symbols repeated through the labels; the decoder's own text tells nothing of it.

    Only the encoder reads the pair, so no prefix helps: again log 16 nats a token, at every position.
    """
    keys = torch.randint(2, 2 + NUM_SYMBOLS, (batch_size, 2)).repeat(1, 4)
    return {"input_ids": torch.ones_like(keys), "labels": keys, "encoder_input_ids": keys}


def _train(eem: EEMForCausalLM, make_rows: Callable[[int], dict[str, Tensor]], steps: int, **options: Any) -> None:
    optimizer = torch.optim.AdamW(eem.train().parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        eem(**make_rows(128), **options).loss.backward()
        torch.nn.utils.clip_grad_norm_(eem.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    eem.eval()


@pytest.mark.parametrize("make_rows", [_random_rows, _random_keys])
@pytest.mark.parametrize(
    "pair, introduction",
    [*[(("masked_mixer", "masked_mixer"), intro) for intro in INTRODUCTIONS], (("llama", "llama"), "token")],
    ids=str,
)
@torch.no_grad()
def test_what_cannot_be_predicted_is_sent(
    pair: tuple[str, str], introduction: str, make_rows: Callable, eem_config: Callable[..., Any]
) -> None:
    """On rows never seen: far below the causal entropy with the code, above it without, or with another row's."""
    causal_entropy = math.log(NUM_SYMBOLS)
    eem = EEMForCausalLM(eem_config(*pair, introduction, bottleneck_size=12))
    with torch.enable_grad():
        _train(eem, make_rows, steps=400)
    rows = make_rows(512)
    output = eem(**rows)
    assert output.loss < 0.25 * causal_entropy
    assert eem(**rows, occlude_memory=True).loss > causal_entropy
    rows.pop("encoder_input_ids", None)  # a code takes its place
    assert eem(**rows, code=output.code.roll(1, dims=0)).loss > causal_entropy


@pytest.mark.parametrize("make_rows", [_random_rows, _random_keys])
def test_without_the_memory_the_causal_entropy_is_the_floor(
    make_rows: Callable, eem_config: Callable[..., Any]
) -> None:
    """The control: trained without its memory, the same model learns the rows' distribution and nothing more."""
    eem = EEMForCausalLM(eem_config())
    _train(eem, make_rows, steps=200, occlude_memory=True)
    loss = eem(**make_rows(512), occlude_memory=True).loss.item()
    assert loss == pytest.approx(math.log(NUM_SYMBOLS), abs=0.1)


def test_rows_are_occluded_one_by_one(eem: EEMForCausalLM, assert_same_logits: Callable) -> None:
    """A row is what it is alone, shown its code or not."""
    input_ids = torch.randint(2, 40, (3, 9))
    mask = torch.ones_like(input_ids)
    mask[0, :4] = mask[1, 6:] = 0
    occluded = torch.tensor([True, False, True])
    for given in ({}, {"attention_mask": mask}):
        mixed = eem(input_ids, labels=input_ids, occlude_memory=occluded, **given).logits
        shown = eem(input_ids, labels=input_ids, **given).logits
        hidden = eem(input_ids, labels=input_ids, occlude_memory=True, **given).logits
        expected = torch.where(occluded[:, None, None], hidden, shown)
        is_real = given.get("attention_mask", torch.ones_like(mask)).bool()
        assert_same_logits(mixed[is_real], expected[is_real])
        assert not torch.allclose(hidden[is_real], shown[is_real], atol=1e-3)


def test_code_dropout_occludes_training_rows(eem: EEMForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its probability, from the framework's generator, and in training alone; at 0 nothing is drawn."""
    input_ids = torch.randint(2, 40, (64, 5))
    seen = []
    introduce = eem.model._introduce
    monkeypatch.setattr(
        eem.model, "_introduce", lambda *given: (seen.append(given[2]), introduce(*given))[1], raising=False
    )

    def loss(probability: float) -> Tensor:
        eem.config.code_dropout = probability
        torch.manual_seed(3)
        return eem.train()(input_ids, labels=input_ids).loss

    clean, all_hidden = loss(0.0), eem(input_ids, labels=input_ids, occlude_memory=True).loss
    assert seen[0] is False
    torch.testing.assert_close(loss(1.0), all_hidden)
    assert torch.equal(loss(0.25), loss(0.25)) and not torch.equal(loss(0.25), clean)
    torch.manual_seed(3)
    assert torch.equal(seen[-1], torch.rand(64) < 0.25) and 4 < seen[-1].sum() < 30
    eem.eval()(input_ids, labels=input_ids)
    assert seen[-1] is False


def test_an_occluded_row_teaches_the_encoder_nothing(eem: EEMForCausalLM) -> None:
    input_ids = torch.randint(2, 40, (2, 9))
    eem(input_ids, labels=input_ids, occlude_memory=torch.tensor([True, True])).loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in eem.model.encoder.parameters())
