"""Every generation path on a GPU: the CPU's tokens in float32; in half precision the cache's logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

PATHS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beam": {"num_beams": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "a forbidden token": {"bad_words_ids": [[7]]},
}


@pytest.fixture
def prompt() -> dict[str, Tensor]:
    """A left-padded batch."""
    mask_BT = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    return {"input_ids": torch.randint(2, 40, (2, 4)), "attention_mask": mask_BT}


@pytest.mark.parametrize("path", PATHS)
def test_the_cpus_tokens(
    path: str, causal_lm: Any, prompt: dict[str, Tensor], device: torch.device, on_device: Callable
) -> None:
    rows = {name: x[:1] for name, x in prompt.items()} if path == "prompt lookup" else prompt
    options = {"max_new_tokens": 8, "do_sample": False, **PATHS[path]}
    there = on_device(causal_lm, torch.float32)
    generated = there.generate(**{name: x.to(device) for name, x in rows.items()}, **options)
    assert torch.equal(generated.cpu(), causal_lm.generate(**rows, **options))


def test_a_code_that_is_given(
    make_model: Callable, prompt: dict[str, Tensor], device: torch.device, on_device: Callable
) -> None:
    model, code = make_model("eem, llama"), torch.randn(2, 6)
    there = on_device(model, torch.float32)
    moved = {name: x.to(device) for name, x in prompt.items()}
    options = {"max_new_tokens": 8, "do_sample": False}
    generated = there.generate(**moved, code=code.to(device), **options)
    assert torch.equal(generated.cpu(), model.generate(**prompt, code=code, **options))


def test_samples_repeat_with_the_seed(
    causal_lm: Any, dtype: torch.dtype, prompt: dict[str, Tensor], device: torch.device, on_device: Callable
) -> None:
    there = on_device(causal_lm, dtype)
    moved = {name: x.to(device) for name, x in prompt.items()}
    samples = []
    for _ in range(2):
        torch.manual_seed(0)
        samples.append(there.generate(**moved, max_new_tokens=8, do_sample=True, top_k=0))
    assert torch.equal(*samples) and samples[0].shape == (2, 12) and samples[0].max() < 40


@torch.no_grad()
def test_a_cache_changes_no_logit(
    causal_lm: Any, dtype: torch.dtype, device: torch.device, on_device: Callable, assert_near: Callable
) -> None:
    """Token by token with a cache on the device, against one pass of the CPU in float32 over the whole text."""
    ids_BT = torch.randint(2, 40, (2, 12))
    code = {"code": torch.randn(2, 6)} if causal_lm.config.model_type == "eem" else {}
    expected = causal_lm(input_ids=ids_BT, **code).logits
    there, code = on_device(causal_lm, dtype), {name: x.to(device, dtype) for name, x in code.items()}
    cache, logits = None, []
    for step in ids_BT.to(device).split(1, dim=1):
        output = there(input_ids=step, past_key_values=cache, use_cache=True, **code)
        cache = output.past_key_values
        logits.append(output.logits)
    assert_near(torch.cat(logits, dim=1), expected, dtype)


@torch.no_grad()
@pytest.mark.parametrize("name", ["autoencoder", "autoencoder, llama"])
def test_an_autoencoder_reconstructs_the_cpus_tokens(
    name: str, make_model: Callable, batch: dict[str, Tensor], batch_there: dict[str, Tensor], on_device: Callable
) -> None:
    model = make_model(name)
    there = on_device(model, torch.float32)
    ids_BT = there.reconstruct(there.encode(**batch_there), batch_there["attention_mask"])
    expected_BT = model.reconstruct(model.encode(**batch), batch["attention_mask"])
    assert torch.equal(ids_BT.cpu()[batch["attention_mask"].bool()], expected_BT[batch["attention_mask"].bool()])
