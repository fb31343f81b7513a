"""One tiny model of every public class and of the backbones that matter, with inputs and a loss to differentiate."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# Name: class, how its config is made (a fixture of the outer conftest, or "autoencoder"), and with what.
ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixer base": ("MaskedMixerModel", "backbone", {}),
    "mixer": ("MaskedMixerForCausalLM", "backbone", {}),
    "mixer, heads and kernel": (
        "MaskedMixerForCausalLM",
        "backbone",
        {"num_mixing_heads": 2, "mixing_kernel_size": 3},
    ),
    "mixer, tied": ("MaskedMixerForCausalLM", "backbone", {"tie_word_embeddings": True}),
    "mixer classifier": ("MaskedMixerForTokenClassification", "backbone", {"num_labels": 3}),
    "eem base": ("EEMModel", "eem", {}),
    "eem": ("EEMForCausalLM", "eem", {}),
    "eem, embedding": ("EEMForCausalLM", "eem", {"memory_introduction": "embedding"}),
    "eem, llama": ("EEMForCausalLM", "eem", {"encoder": "llama", "decoder": "llama"}),
    "eem, gpt_neox to qwen2": ("EEMForCausalLM", "eem", {"encoder": "gpt_neox", "decoder": "qwen2"}),
    "eem, tied gpt2": (
        "EEMForCausalLM",
        "eem",
        {"decoder": "gpt2", "memory_introduction": "combination", "tie_word_embeddings": True},
    ),
    "autoencoder": ("EEMAutoencoder", "autoencoder", {}),
    "autoencoder, llama": ("EEMAutoencoder", "autoencoder", {"model_type": "llama", "memory_expansion": "unroll"}),
}


@pytest.fixture(scope="session")
def make_model(backbone_config: Callable[..., Any], eem_config: Callable[..., Any]) -> Callable[[str], Any]:
    """A model of the zoo by its name, in evaluation mode."""
    import modeling_eem

    def autoencoder(model_type: str = "masked_mixer", **changes: Any) -> modeling_eem.EEMAutoencoderConfig:
        alignment = {"position_alignment": "right"} if model_type == "masked_mixer" else {}
        encoder = backbone_config(model_type, hidden_size=16, **alignment)
        return modeling_eem.EEMAutoencoderConfig(
            encoder_config=encoder, decoder_config=backbone_config(model_type), bottleneck_size=6, **changes
        )

    configs = {"backbone": backbone_config, "eem": eem_config, "autoencoder": autoencoder}

    def make(name: str) -> Any:
        class_name, config, changes = ZOO[name]
        return getattr(modeling_eem, class_name)(configs[config](**changes)).eval()

    return make


@pytest.fixture(params=ZOO)
def model(request: pytest.FixtureRequest, make_model: Callable[[str], Any]) -> Any:
    return make_model(request.param)


@pytest.fixture(params=[name for name, (class_name, *_) in ZOO.items() if class_name.endswith("CausalLM")])
def causal_lm(request: pytest.FixtureRequest, make_model: Callable[[str], Any]) -> Any:
    return make_model(request.param)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Left- and right-padded rows that every model of the zoo reads."""
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[1, :3] = mask[2, 8:] = 0
    return {"input_ids": torch.randint(2, 30, (3, 10)), "attention_mask": mask}


@pytest.fixture(scope="session")
def loss_of() -> Callable[..., Tensor]:
    """A model's own loss on a batch; a base model's is the mean square of what it returns on real tokens."""

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"].bool()
        if type(model).__name__ in ("MaskedMixerModel", "EEMModel"):
            return model(**batch).last_hidden_state[mask].square().mean()
        labels = batch["input_ids"].masked_fill(~mask, -100)
        if type(model).__name__ == "MaskedMixerForTokenClassification":
            labels = torch.where(mask, labels % 3, labels)
        return model(**batch, labels=labels).loss

    return loss


@pytest.fixture(scope="session")
def output_of() -> Callable[..., Tensor]:
    """What a model says of the real tokens of a batch: logits, or hidden states."""

    @torch.no_grad()
    def output(model: Any, batch: dict[str, Tensor]) -> Tensor:
        result = model(**batch)
        values = result.logits if "logits" in result else result.last_hidden_state
        return values[batch["attention_mask"].bool()]

    return output
