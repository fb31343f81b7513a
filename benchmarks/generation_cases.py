"""Greedy generation of 480 of 512 tokens: a mixer with its cache, without it, and Llama of equal size."""

from collections.abc import Callable

import torch
from figures import Figure
from paired import paired_ratios, seconds
from torch import Tensor
from training_cases import LENGTH, llama_of, mixer, random_rows
from transformers import PreTrainedModel

NEW_TOKENS = 480


def _generate(model: PreTrainedModel, prompt: Tensor, new_tokens: int = NEW_TOKENS) -> Callable[[], Tensor]:
    def run() -> Tensor:
        return model.generate(
            prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, eos_token_id=None
        )

    return run


@torch.no_grad()
def _uncached(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The whole text again for every token."""
    return torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=-1)


@torch.no_grad()
def cached_against_uncached(repeats: int) -> list[Figure]:
    """Uncached, a token costs what its whole text costs; timed at a few lengths, and summed over all by interpolation.

    The sum itself would take a quarter of an hour for a batch of 32. A forward pass grows linearly with the length,
    but for the mixing's small quadratic part, so the trapezoid over seven lengths is within a few per cent.
    """
    model = mixer().eval()
    figures = []
    for batch_size, floor in ((1, 10), (32, 50)):
        prompt = random_rows(LENGTH - NEW_TOKENS, batch_size)
        cached = _generate(model, prompt)
        _check_same_text(model, prompt)
        cached()
        lengths = [LENGTH - NEW_TOKENS + share * (NEW_TOKENS - 1) // 6 for share in range(7)]
        ratios = []
        for _ in range(repeats):
            took = seconds(cached)
            texts = [random_rows(length, batch_size) for length in lengths]
            steps = [seconds(lambda ids=ids: _uncached(model, ids)) for ids in texts]
            areas = [
                (after - before) * (first + second) / 2
                for before, after, first, second in zip(lengths, lengths[1:], steps, steps[1:])
            ]
            ratios.append((sum(areas) + steps[-1]) / took)
        figures.append(Figure(f"greedy cached mixer generation over uncached, batch {batch_size}", ratios, floor))
    return figures


def _check_same_text(model: PreTrainedModel, prompt: Tensor, tokens: int = 8) -> None:
    ids = prompt
    for _ in range(tokens):
        ids = _uncached(model, ids)
    if not torch.equal(ids, _generate(model, prompt, tokens)()):
        raise AssertionError("cached and uncached generation differ")


@torch.no_grad()
def mixer_against_llama(repeats: int) -> list[Figure]:
    """The same through `generate`, over Llama of equal parameters with its own cache."""
    ours = mixer().eval()
    llama = llama_of(ours.num_parameters()).eval()
    figures = []
    for batch_size, floor in ((1, 2.5), (32, 3)):
        prompt = random_rows(LENGTH - NEW_TOKENS, batch_size)
        ratios = paired_ratios(_generate(ours, prompt), _generate(llama, prompt), repeats)
        figures.append(Figure(f"mixer generation over Llama's of equal size, batch {batch_size}", ratios, floor))
    return figures


CASES = {"generation": cached_against_uncached, "generation-against-llama": mixer_against_llama}
