"""Generation by entropy estimation models: one code, made once and carried through every kind of decoding."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem import EEMForCausalLM, MaskedMixerForCausalLM

PAIRS = [("masked_mixer", "masked_mixer"), ("llama", "llama"), ("gpt2", "masked_mixer"), ("masked_mixer", "gpt_neox")]
INTRODUCTIONS = ["token", "embedding", "combination"]
EVERY = {
    f"{encoder}-{decoder}, {introduction}": (encoder, decoder, introduction)
    for (encoder, decoder), introduction in itertools.product(PAIRS, INTRODUCTIONS)
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "beam": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True},
}


@pytest.fixture(params=EVERY.values(), ids=EVERY)
def eem(request: pytest.FixtureRequest, eem_config: Callable[..., Any]) -> EEMForCausalLM:
    return EEMForCausalLM(eem_config(*request.param)).eval()


@pytest.fixture
def encoder_calls(eem: EEMForCausalLM) -> list[Tensor]:
    """What the encoder was given to read, call by call."""
    calls: list[Tensor] = []
    eem.model.encoder.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    return calls


def _ids(*shape: int) -> Tensor:
    return torch.randint(2, 40, shape)


def _generate(model: EEMForCausalLM, input_ids: Tensor, max_new_tokens: int = 9, **options: Any) -> Tensor:
    """The new tokens, from the same seed each time."""
    torch.manual_seed(1)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    return model.generate(input_ids, **options)[:, input_ids.shape[1] :]


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 2, 4)], ids=["full", "left-padded"])
def test_cached_generation_equals_uncached(
    eem: EEMForCausalLM, options: dict[str, Any], lengths: tuple[int, ...], pad_rows: Callable
) -> None:
    prompt, mask = pad_rows([_ids(n) for n in lengths], "left", 5)
    for reads in ({}, {"code": torch.randn(3, 6)}, {"occlude_memory": True}):
        cached, uncached = (
            _generate(eem, prompt, attention_mask=mask, use_cache=use_cache, **reads, **options)
            for use_cache in (True, False)
        )
        assert cached.shape == (3, 9) and torch.equal(cached, uncached)


def test_greedy_generation_is_a_loop_of_forwards(eem: EEMForCausalLM, pad_rows: Callable) -> None:
    """With the prompt's code, not with one that follows the text."""
    prompt, mask = pad_rows([_ids(n) for n in (4, 3)], "left", 4)
    code = eem.encode(prompt, mask)
    ids, ids_mask = prompt, mask
    for _ in range(9):
        logits = eem(ids, attention_mask=ids_mask, code=code).logits[:, -1:]
        ids, ids_mask = torch.cat([ids, logits.argmax(-1)], dim=1), F.pad(ids_mask, (0, 1), value=1)
    assert torch.equal(_generate(eem, prompt, attention_mask=mask), ids[:, 4:])
    assert torch.equal(_generate(eem, prompt, attention_mask=mask, code=code), ids[:, 4:])


def test_a_left_padded_batch_generates_what_single_rows_do(eem: EEMForCausalLM, pad_rows: Callable) -> None:
    texts = [_ids(n) for n in (6, 1, 4)]
    prompt, mask = pad_rows(texts, "left", 6)
    alone = torch.cat([_generate(eem, text[None]) for text in texts])
    assert torch.equal(_generate(eem, prompt, attention_mask=mask), alone)
    # Without a mask, generate takes the pad token for padding: the encoder must too.
    assert torch.equal(_generate(eem, prompt.masked_fill(mask == 0, 0)), alone)


def test_a_cached_step_gives_the_logits_of_the_whole_row(
    eem: EEMForCausalLM, pad_rows: Callable, assert_same_logits: Callable, encoder_calls: list[Tensor]
) -> None:
    """In steps of several lengths behind left padding; the code is carried by the cache, and nothing is encoded."""
    input_ids, mask = pad_rows([_ids(n) for n in (14, 9)], "left", 14)
    for first in ({"code": torch.randn(2, 6)}, {"encoder_input_ids": _ids(2, 7)}, {"occlude_memory": True}):
        expected = eem(input_ids, attention_mask=mask, **first).logits
        encoder_calls.clear()
        cache, reads = None, first
        for start, stop in ((0, 7), (7, 8), (8, 12), (12, 14)):
            step = eem(
                input_ids[:, start:stop],
                attention_mask=mask[:, :stop],
                past_key_values=cache,
                use_cache=True,
                **reads,
            )
            cache, reads = step.past_key_values, first if "occlude_memory" in first else {}
            is_real = mask[:, start:stop].bool()
            assert_same_logits(step.logits[is_real], expected[:, start:stop][is_real])
            assert cache.get_seq_length() == stop
        assert len(encoder_calls) == ("encoder_input_ids" in first)


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_a_cache_moves_its_codes_with_its_rows(
    change: Callable, rows: list[int], eem: EEMForCausalLM, assert_same_logits: Callable
) -> None:
    """So that a decoding loop of anyone's may leave the code to the cache."""
    text, code = _ids(3, 8), torch.randn(3, 6)
    expected = eem(text, code=code).logits[rows]
    cache = eem(text[:, :5], code=code, use_cache=True).past_key_values
    change(cache)
    assert_same_logits(eem(text[rows, 5:], past_key_values=cache).logits, expected[:, 5:])
    cache.reset()
    assert cache.code is None and cache.get_seq_length() == 0


def test_the_prompt_is_encoded_once(eem: EEMForCausalLM, encoder_calls: list[Tensor]) -> None:
    prompt, code, context = _ids(2, 4), torch.randn(2, 6), _ids(2, 5)
    for options in STRATEGIES.values():
        for use_cache in (True, False):
            for reads, expected in (
                ({}, [prompt]),
                ({"encoder_input_ids": context}, [context]),
                ({"code": code}, []),
                ({"occlude_memory": True}, []),
            ):
                encoder_calls.clear()
                _generate(eem, prompt, use_cache=use_cache, **reads, **options)
                assert len(encoder_calls) == len(expected) and all(map(torch.equal, encoder_calls, expected))


def test_text_is_generated_from_its_code_alone(eem: EEMForCausalLM) -> None:
    """Beginning with BOS; a batch of codes gives each its own text."""
    codes, options = torch.randn(3, 6), {"do_sample": False, "max_new_tokens": 9}
    result = eem.generate(code=codes, output_logits=True, return_dict_in_generate=True, **options)
    texts = result.sequences
    assert texts.shape == (3, 10) and (texts[:, 0] == 1).all()
    assert all((logits[0] - logits[1]).abs().max() > 1e-4 for logits in result.logits)
    assert torch.equal(texts, eem.generate(torch.ones(3, 1, dtype=torch.long), code=codes, **options))
    for code, text in zip(codes, texts):
        assert torch.equal(eem.generate(code=code[None], **options)[0], text)


@pytest.mark.parametrize("helper", ["assistant", "itself", "prompt lookup"])
def test_speculative_decoding_is_greedy_decoding(
    eem: EEMForCausalLM, helper: str, eem_config: Callable[..., Any], encoder_calls: list[Tensor]
) -> None:
    """Guesses of another EEM, of the model itself and of the prompt, accepted and rejected, change nothing."""
    prompt = torch.tensor([[3, 4, 5, 3, 4]])
    options = {
        "assistant": {"assistant_model": EEMForCausalLM(eem_config()).eval()},
        "itself": {"assistant_model": eem},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }[helper]
    for reads in ({}, {"code": torch.randn(1, 6)}, {"occlude_memory": True}):
        greedy = _generate(eem, prompt, **reads)
        encoder_calls.clear()
        assert torch.equal(_generate(eem, prompt, **reads, **options), greedy)
        if helper != "itself":
            assert len(encoder_calls) == (not reads)


def test_a_causal_model_assists_an_eem(eem: EEMForCausalLM, backbone_config: Callable[..., Any]) -> None:
    assistant = MaskedMixerForCausalLM(backbone_config()).eval()
    prompt = _ids(1, 4)
    assert torch.equal(_generate(eem, prompt, assistant_model=assistant), _generate(eem, prompt))


@pytest.mark.parametrize("reads", [{}, {"code": torch.linspace(-2, 2, 12).view(2, 6)}], ids=["prompt", "code"])
def test_generation_continues_from_a_cache(
    eem: EEMForCausalLM, reads: dict[str, Tensor], encoder_calls: list[Tensor]
) -> None:
    prompt = _ids(2, 4)
    whole = _generate(eem, prompt, **reads)
    first = eem.generate(prompt, do_sample=False, max_new_tokens=5, return_dict_in_generate=True, **reads)
    cache = first.past_key_values
    assert cache.get_seq_length() == 8
    encoder_calls.clear()
    mask = torch.ones_like(first.sequences)  # the pad token, generated, is no padding
    rest = _generate(eem, first.sequences, max_new_tokens=4, past_key_values=cache, attention_mask=mask)
    assert torch.equal(torch.cat([first.sequences[:, 4:], rest], dim=1), whole) and not encoder_calls


def test_generation_continues_from_a_prefix_that_forward_cached(eem: EEMForCausalLM) -> None:
    """A shared prefix is decoded once, with the code of a longer text."""
    text = _ids(1, 6)
    code = eem.encode(text)
    cache = eem(text[:, :-1], code=code, use_cache=True).past_key_values
    assert torch.equal(_generate(eem, text, past_key_values=cache), _generate(eem, text))


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_ends_where_the_context_is_full(
    eem: EEMForCausalLM, use_cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning and all of the text; the last token is not read, so there is one more than the context holds."""
    prompt = _ids(1, 10)
    whole = _generate(eem, prompt, max_new_tokens=7, use_cache=use_cache)
    assert whole.shape == (1, 7) and not caplog.records
    for options in ({"max_new_tokens": 8}, {"max_new_tokens": None, "max_length": 300}):
        caplog.clear()
        assert torch.equal(_generate(eem, prompt, use_cache=use_cache, **options), whole)
        assert "max_position_embeddings=16" in caplog.text


def test_a_prompt_that_fills_the_context_is_refused_at_once(eem: EEMForCausalLM) -> None:
    assert _generate(eem, _ids(1, 16), max_new_tokens=3).shape == (1, 1)
    with pytest.raises(ValueError, match="max_position_embeddings=16"):
        _generate(eem, _ids(1, 17), max_new_tokens=3)


def test_bad_prompts_are_refused(eem: EEMForCausalLM) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        _generate(eem, torch.tensor([[3, 40]]))
    with pytest.raises(ValueError, match="row 1 is all padding"):
        _generate(eem, _ids(2, 3), attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_several_sequences_a_prompt_share_its_code(eem: EEMForCausalLM, encoder_calls: list[Tensor]) -> None:
    prompt = _ids(2, 4)
    sampled = _generate(eem, prompt, do_sample=True, num_return_sequences=3)
    assert sampled.shape == (6, 9) and len(encoder_calls) == 1
    codes = eem.encode(prompt).repeat_interleave(3, dim=0)
    assert torch.equal(sampled, _generate(eem, prompt.repeat_interleave(3, dim=0), do_sample=True, code=codes))


def test_codes_are_rounded_once_in_generation(eem_config: Callable[..., Any]) -> None:
    """What is carried is what is stored."""
    eem = EEMForCausalLM(eem_config(code_dtype="int3")).eval()
    prompt = _ids(2, 4)
    result = eem.generate(prompt, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
    torch.testing.assert_close(result.past_key_values.code, eem.encode(prompt), rtol=1e-6, atol=1e-6)


def test_noise_is_no_part_of_generation_outside_training(eem_config: Callable[..., Any]) -> None:
    eem = EEMForCausalLM(eem_config(noise_scale=5.0)).eval()
    prompt = _ids(2, 4)
    assert torch.equal(_generate(eem, prompt), _generate(eem, prompt))
    torch.manual_seed(5)
    assert torch.equal(eem.generate(prompt, do_sample=False, max_new_tokens=9)[:, 4:], _generate(eem, prompt))
