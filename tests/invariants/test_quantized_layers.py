"""What swaps layers by their exact type treats a mixer's and an EEM's Linears as it treats Llama's."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from modeling_eem import (
    EEMAutoencoder,
    EEMAutoencoderConfig,
    EEMConfig,
    EEMForCausalLM,
    MaskedMixerConfig,
    MaskedMixerForCausalLM,
)

_SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 32}
_LLAMA = {**_SIZES, "intermediate_size": 256, "num_attention_heads": 4}
_LLAMA_OF_EEM = {**_LLAMA, "model_type": "llama"}
# 4-bit products of bitsandbytes on a CPU want layers of a multiple of 64 inputs and 32 outputs, the code's too.
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA)),
    "mixer": lambda: MaskedMixerForCausalLM(MaskedMixerConfig(**_SIZES, num_mixing_heads=4)),
    "eem": lambda: EEMForCausalLM(
        EEMConfig(encoder_config=_SIZES, decoder_config={**_SIZES, "max_position_embeddings": 33}, bottleneck_size=64)
    ),
    "eem, llama": lambda: EEMForCausalLM(
        EEMConfig(
            encoder_config=_LLAMA_OF_EEM,
            decoder_config={**_LLAMA_OF_EEM, "max_position_embeddings": 33},
            bottleneck_size=64,
        )
    ),
    "autoencoder": lambda: EEMAutoencoder(EEMAutoencoderConfig(encoder_config=_SIZES, decoder_config=_SIZES)),
}


def _linears(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) is nn.Linear}


def _num_bytes(model: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


@torch.no_grad()
def _loss(model: nn.Module) -> float:
    torch.manual_seed(1)
    input_ids: Tensor = torch.randint(2, 64, (4, 32))
    return model.eval()(input_ids=input_ids, labels=input_ids).loss.item()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_bitsandbytes_quantizes_all_linears_but_the_head(name: str, bits: int, tmp_path: Path) -> None:
    """All Linears but the head, as in Llama: fewer bytes, and a loss that moves by less than a hundredth."""
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    quantized = type(model).from_pretrained(tmp_path, quantization_config=config)
    assert _linears(quantized) == {"lm_head"}
    share = {8: 0.25, 4: 0.125}[bits]
    weights = sum(model.get_submodule(layer).weight.numel() * 4 for layer in _linears(model) - {"lm_head"})
    assert _num_bytes(quantized) <= _num_bytes(model) - (1 - share) * weights
    assert _loss(quantized) == pytest.approx(_loss(model), rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_dynamic_quantization_swaps_every_linear(name: str) -> None:
    model = MODELS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated in favour of torchao
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert _linears(model) and not _linears(quantized)
    assert _loss(quantized) == pytest.approx(_loss(model), rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_torchao_quantizes_every_linear(name: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = MODELS[name]()
    expected, before = _loss(model), _linears(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert all(
        "Int8" in type(model.get_submodule(layer).weight).__name__
        or "Quantized" in type(model.get_submodule(layer).weight).__name__
        for layer in before
    )
    assert _loss(model) == pytest.approx(expected, rel=0.01)
