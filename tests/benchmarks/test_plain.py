"""What ours is timed against computes what ours computes: losses and gradients."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, MaskedMixerConfig, MaskedMixerForCausalLM


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import plain

    return plain


@pytest.mark.parametrize("options", [{}, {"num_heads": 4}, {"kernel_size": 4}], ids=["flat", "heads", "taps"])
def test_the_plain_mixer_computes_what_ours_computes(plain: ModuleType, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = MaskedMixerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        max_position_embeddings=12,
        num_mixing_heads=options.get("num_heads", 0),
        mixing_kernel_size=options.get("kernel_size", 1),
    )
    ours = MaskedMixerForCausalLM(config).double()
    theirs = plain.PlainMixer(50, 16, 12, 2, **options).double()
    plain.load_mixer(theirs, ours)
    input_ids = torch.randint(50, (3, 12))
    our_loss, their_loss = ours(input_ids=input_ids, labels=input_ids).loss, theirs(input_ids)
    torch.testing.assert_close(our_loss, their_loss, check_dtype=False, rtol=1e-5, atol=1e-5)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(ours.model.embed_tokens.weight.grad, theirs.embed.weight.grad, rtol=1e-4, atol=1e-6)


def test_the_plain_autoencoder_computes_what_ours_computes(plain: ModuleType) -> None:
    torch.manual_seed(0)
    backbone = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 12}
    config = EEMAutoencoderConfig(encoder_config=backbone, decoder_config=backbone, memory_expansion="unroll")
    ours = EEMAutoencoder(config)
    theirs = plain.PlainAutoencoder(50, 8, 12, 1)
    plain.load_autoencoder(theirs, ours)
    input_ids = torch.randint(50, (3, 12))
    our_loss, their_loss = ours(input_ids=input_ids, labels=input_ids).loss, theirs(input_ids)
    torch.testing.assert_close(our_loss, their_loss)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(ours.encoder.embed_tokens.weight.grad, theirs.embed.weight.grad)
