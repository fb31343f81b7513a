"""LoRA adapters of PEFT: trained alone, honoured everywhere, merged and saved."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

TARGETS = ["up_proj", "down_proj", "lm_head"]


def _randomise(model: PeftModel) -> None:
    """A fresh adapter computes nothing: its second matrix is zero."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)


def _wrap(model: Any, targets: list[str] | str = TARGETS) -> PeftModel:
    task = "CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None
    return get_peft_model(model, LoraConfig(task_type=task, r=2, target_modules=targets))


@pytest.fixture(params=["mixer, heads and kernel", "eem", "eem, embedding", "eem, llama", "autoencoder"])
def adapted(request: pytest.FixtureRequest, make_model: Callable[[str], Any]) -> PeftModel:
    return _wrap(make_model(request.param))


def test_only_adapters_are_trained(adapted: PeftModel, batch: dict[str, Tensor]) -> None:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    _randomise(adapted)
    adapted.train()(**batch, labels=labels).loss.backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, _ in adapted.named_parameters() if "lora_" in name}
    assert any("lm_head" in name for name in trained)


def test_the_chunked_head_honours_its_adapter(adapted: PeftModel, batch: dict[str, Tensor]) -> None:
    """The loss in training, where logits are not kept, is that of the adapted logits."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    inputs = {**batch, "labels": labels}
    before = adapted.train()(**inputs).loss
    for name, p in adapted.named_parameters():
        if "lm_head" in name and "lora_B" in name:
            torch.nn.init.normal_(p)
    trained, evaluated = adapted.train()(**inputs).loss, adapted.eval()(**inputs).loss
    torch.testing.assert_close(trained, evaluated)
    assert (trained - before).abs() > 1e-3


def test_adapters_merge_and_save(
    adapted: PeftModel, tmp_path: Path, batch: dict[str, Tensor], output_of: Callable
) -> None:
    _randomise(adapted.eval())
    expected = output_of(adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adapted.unload().save_pretrained(tmp_path / "base")
    base = type(adapted.base_model.model).from_pretrained(tmp_path / "base")
    plain = output_of(base, batch)
    assert (plain - expected).abs().max() > 1e-2
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(output_of(loaded, batch), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output_of(loaded.merge_and_unload(), batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mixer", "eem", "eem, embedding", "eem, llama"])
def test_an_adapted_model_generates(name: str, make_model: Callable[[str], Any]) -> None:
    prompt = torch.randint(2, 40, (2, 4))
    options = {"do_sample": False, "max_new_tokens": 6}
    model = make_model(name)
    plain = model.generate(prompt, **options)
    adapted = _wrap(model)
    assert torch.equal(adapted.generate(input_ids=prompt, **options), plain)
    _randomise(adapted.eval())
    cached, uncached = (adapted.generate(input_ids=prompt, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, uncached) and not torch.equal(cached, plain)


def test_all_linear_reaches_every_projection(make_model: Callable[[str], Any], batch: dict[str, Tensor]) -> None:
    """The bottleneck and the memory's projection too; each adapter gets a gradient."""
    adapted = _wrap(make_model("eem"), targets="all-linear")
    _randomise(adapted)
    adapted.train()(**batch, labels=batch["input_ids"]).loss.backward()
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_A" in name}
    for part in ("bottleneck.down", "bottleneck.up", "memory_proj", "encoder.backbone", "decoder"):
        assert any(part in name for name in adapters)
    assert all(p.grad.any() for p in adapters.values())
