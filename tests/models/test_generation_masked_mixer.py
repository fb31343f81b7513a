"""Generation by masked mixers: with the cache as without, in a batch as alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_eem import MaskedMixerForCausalLM

VARIANTS: dict[str, dict[str, Any]] = {
    "flat": {},
    "kernel": {"mixing_kernel_size": 4},
    "heads": {"num_mixing_heads": 4},
    "heads and kernel": {"num_mixing_heads": 2, "mixing_kernel_size": 3},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "beam": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def mixer(request: pytest.FixtureRequest, backbone_config: Callable[..., Any]) -> MaskedMixerForCausalLM:
    return MaskedMixerForCausalLM(backbone_config(**request.param)).eval()


def _generate(model: MaskedMixerForCausalLM, input_ids: Tensor, max_new_tokens: int = 9, **options: Any) -> Tensor:
    """The new tokens, from the same seed each time."""
    torch.manual_seed(1)
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    return model.generate(input_ids, **options)[:, input_ids.shape[1] :]


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("lengths", [(5, 5, 5), (5, 2, 4)], ids=["full", "left-padded"])
def test_cached_generation_equals_uncached(
    mixer: MaskedMixerForCausalLM, options: dict[str, Any], lengths: tuple[int, ...], pad_rows: Callable
) -> None:
    prompt, mask = pad_rows([torch.randint(2, 40, (n,)) for n in lengths], "left", 5)
    cached, uncached = (
        _generate(mixer, prompt, attention_mask=mask, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert cached.shape == (3, 9) and torch.equal(cached, uncached)
    assert len(set(map(tuple, cached.tolist()))) > 1, "all rows continue alike: this test would see no mix-up of rows"


def test_greedy_generation_is_a_loop_of_forwards(mixer: MaskedMixerForCausalLM) -> None:
    prompt = ids = torch.randint(2, 40, (2, 4))
    for _ in range(9):
        ids = torch.cat([ids, mixer(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(_generate(mixer, prompt), ids[:, 4:])


def test_a_cached_step_gives_the_logits_of_the_whole_row(
    mixer: MaskedMixerForCausalLM, pad_rows: Callable, assert_same_logits: Callable
) -> None:
    """Logits, not only their argmax, in steps of several lengths behind left padding."""
    input_ids, mask = pad_rows([torch.randint(2, 40, (n,)) for n in (14, 9)], "left", 14)
    expected = mixer(input_ids, attention_mask=mask).logits
    cache = None
    for start, stop in ((0, 7), (7, 8), (8, 12), (12, 14)):
        step = mixer(input_ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        is_real = mask[:, start:stop].bool()
        assert_same_logits(step.logits[is_real], expected[:, start:stop][is_real])
    assert cache.get_seq_length() == 14


def test_a_cached_step_under_autocast_is_that_of_the_whole_row(mixer: MaskedMixerForCausalLM) -> None:
    """Its products take what autocast leaves of the cache, the weights and the sums kept ahead."""
    input_ids = torch.randint(2, 40, (2, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = mixer(input_ids).logits[:, 6:]
        cache = mixer(input_ids[:, :6], use_cache=True).past_key_values
        steps = [mixer(ids, past_key_values=cache, use_cache=True).logits for ids in input_ids[:, 6:].split(1, dim=1)]
    assert steps[0].dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("helper", ["assistant", "prompt lookup"])
def test_speculative_decoding_is_greedy_decoding(
    mixer: MaskedMixerForCausalLM, helper: str, backbone_config: Callable[..., Any]
) -> None:
    """An assistant's or the prompt's guesses, accepted and rejected, leave the text as it is."""
    prompt = torch.tensor([[3, 4, 5, 3, 4]])
    greedy = _generate(mixer, prompt)
    assistant = MaskedMixerForCausalLM(backbone_config(hidden_size=16)).eval()
    assistants = [assistant, mixer] if helper == "assistant" else [None]
    for assistant in assistants:
        options = {"prompt_lookup_num_tokens": 3} if assistant is None else {"assistant_model": assistant}
        assert torch.equal(_generate(mixer, prompt, **options), greedy)


def test_a_left_padded_batch_generates_what_single_rows_do(mixer: MaskedMixerForCausalLM, pad_rows: Callable) -> None:
    texts = [torch.randint(2, 40, (n,)) for n in (6, 1, 4)]
    prompt, mask = pad_rows(texts, "left", 6)
    batch = _generate(mixer, prompt, attention_mask=mask)
    assert torch.equal(batch, torch.cat([_generate(mixer, text[None]) for text in texts]))


def test_generation_continues_from_a_cache(mixer: MaskedMixerForCausalLM) -> None:
    prompt = torch.randint(2, 40, (2, 4))
    whole = _generate(mixer, prompt)
    first = mixer.generate(prompt, do_sample=False, max_new_tokens=5, return_dict_in_generate=True)
    cache = first.past_key_values
    assert cache.get_seq_length() == 8
    mask = torch.ones_like(first.sequences)  # the pad token, generated, is no padding
    rest = _generate(mixer, first.sequences, max_new_tokens=4, past_key_values=cache, attention_mask=mask)
    assert torch.equal(torch.cat([first.sequences[:, 4:], rest], dim=1), whole)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_ends_where_the_context_is_full(
    mixer: MaskedMixerForCausalLM, use_cache: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning and all of the text; the last token is not read, so there is one more than the context holds."""
    prompt = torch.randint(2, 40, (1, 10))
    whole = _generate(mixer, prompt, max_new_tokens=7, use_cache=use_cache)
    assert whole.shape == (1, 7) and not caplog.records
    for options in ({"max_new_tokens": 8}, {"max_new_tokens": None, "max_length": 300}):
        caplog.clear()
        assert torch.equal(_generate(mixer, prompt, use_cache=use_cache, **options), whole)
        assert "max_position_embeddings=16" in caplog.text


def test_a_prompt_that_fills_the_context_is_refused_at_once(mixer: MaskedMixerForCausalLM) -> None:
    assert _generate(mixer, torch.randint(2, 40, (1, 16)), max_new_tokens=3).shape == (1, 1)
    with pytest.raises(ValueError, match="max_position_embeddings=16"):
        _generate(mixer, torch.randint(2, 40, (1, 17)), max_new_tokens=3)


@pytest.mark.parametrize("lengths", [(4, 4), (4, 2)], ids=["full", "left-padded"])
def test_a_right_aligned_model_generates_without_a_cache(
    lengths: tuple[int, ...], backbone_config: Callable[..., Any], pad_rows: Callable
) -> None:
    """Its text moves up a row with each token: a loop of forwards, which `generate` must equal."""
    model = MaskedMixerForCausalLM(backbone_config(position_alignment="right")).eval()
    prompt, mask = pad_rows([torch.randint(2, 40, (n,)) for n in lengths], "left", 4)
    ids, ids_mask = prompt, mask
    for _ in range(9):
        ids = torch.cat([ids, model(ids, attention_mask=ids_mask).logits[:, -1:].argmax(-1)], dim=1)
        ids_mask = F.pad(ids_mask, (0, 1), value=1)
    assert torch.equal(_generate(model, prompt, attention_mask=mask, use_cache=False), ids[:, 4:])
    with pytest.raises(ValueError, match="use_cache=False"):
        _generate(model, prompt, attention_mask=mask)
