"""Training steps: against the plain implementation, against Llama, and against the machine's own matrix product."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from figures import Figure
from paired import paired_ratios, shares_of_peak
from plain import PlainAutoencoder, PlainMixer, load_autoencoder, load_mixer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_eem import EEMAutoencoder, EEMAutoencoderConfig, MaskedMixerConfig, MaskedMixerForCausalLM

VOCABULARY, WIDTH, LENGTH, LAYERS, ROWS = 8000, 256, 512, 8, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW, as a function to be timed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def ours_step(model: nn.Module, input_ids: Tensor) -> Callable[[], None]:
    """A step of one of our models, or of transformers'."""
    return step_of(model, lambda: model(input_ids=input_ids, labels=input_ids, use_cache=False).loss)


def random_rows(length: int = LENGTH, rows: int = ROWS) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (rows, length), generator=generator).to(DEVICE)


def mixer(
    num_heads: int = 0, kernel_size: int = 1, length: int = LENGTH, width: int = WIDTH, layers: int = LAYERS
) -> MaskedMixerForCausalLM:
    config = MaskedMixerConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        max_position_embeddings=length,
        num_mixing_heads=num_heads,
        mixing_kernel_size=kernel_size,
    )
    return MaskedMixerForCausalLM(config).to(DEVICE).train()


def mixer_step_flops(length: int, width: int, rows: int, layers: int = LAYERS, vocabulary: int = VOCABULARY) -> float:
    """Useful FLOPs of a flat mixer's step: three times those of a forward, of the mixing its triangle only."""
    tokens = rows * length
    products = tokens * (layers * 8 * width**2 + vocabulary * width)
    triangle = layers * length * (length + 1) / 2 * rows * width
    return 3 * 2 * (products + triangle)


def check_equal(ours: float, theirs: float, what: str) -> None:
    """A benchmark of two things that differ measures nothing."""
    if abs(ours - theirs) > 1e-4 * max(1.0, abs(theirs)):
        raise AssertionError(f"{what}: ours gives {ours}, the plain implementation {theirs}")


@dataclass(frozen=True)
class Comparison:
    """A training step of ours and the plain implementation's, which compute the same loss."""

    what: str
    floor: float
    ours: Callable[[], None]
    plain: Callable[[], None]

    def figure(self, repeats: int) -> Figure:
        ratios = paired_ratios(self.ours, self.plain, repeats)
        return Figure(f"{self.what}, training step against the plain one", ratios, self.floor)


def compared_mixers() -> Iterator[Comparison]:
    """Flat, with heads and with taps."""
    input_ids = random_rows()
    for what, options, floor in (
        ("flat", {}, 1.5),
        ("4 heads", {"num_heads": 4}, 1.6),
        ("k = 8", {"kernel_size": 8}, 1.7),
    ):
        ours = mixer(**options)
        plain = PlainMixer(VOCABULARY, WIDTH, LENGTH, LAYERS, **options).to(DEVICE)
        load_mixer(plain, ours)
        with torch.no_grad():
            loss = ours(input_ids=input_ids, labels=input_ids).loss.item()
            check_equal(loss, plain(input_ids).item(), f"mixer, {what}")
        plain_step = step_of(plain, lambda plain=plain: plain(input_ids))
        yield Comparison(f"masked mixer, {what}", floor, ours_step(ours, input_ids), plain_step)


def compared_autoencoder() -> Iterator[Comparison]:
    """The unrolled autoencoder."""
    backbone = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "max_position_embeddings": LENGTH}
    config = EEMAutoencoderConfig(
        encoder_config={**backbone, "num_hidden_layers": LAYERS // 2},
        decoder_config={**backbone, "num_hidden_layers": LAYERS // 2},
        memory_expansion="unroll",
    )
    ours = EEMAutoencoder(config).to(DEVICE).train()
    plain = PlainAutoencoder(VOCABULARY, WIDTH, LENGTH, LAYERS // 2).to(DEVICE)
    load_autoencoder(plain, ours)
    input_ids = random_rows()
    with torch.no_grad():
        loss = ours(input_ids=input_ids, labels=input_ids).loss.item()
        check_equal(loss, plain(input_ids).item(), "unrolled autoencoder")
    our_step = step_of(ours, lambda: ours(input_ids=input_ids, labels=input_ids).loss)
    yield Comparison("unrolled autoencoder", 1.5, our_step, step_of(plain, lambda: plain(input_ids)))


def mixer_steps(repeats: int) -> list[Figure]:
    return [compared.figure(repeats) for compared in compared_mixers()]


def autoencoder_step(repeats: int) -> list[Figure]:
    return [compared.figure(repeats) for compared in compared_autoencoder()]


def llama_of(num_parameters: int, length: int = LENGTH) -> LlamaForCausalLM:
    """The Llama of our width whose feed-forward width makes its size nearest to `num_parameters`."""

    def build(intermediate_size: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=intermediate_size,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=length,
        )

    with torch.device("meta"):
        fixed = LlamaForCausalLM(build(8)).num_parameters() - 3 * 8 * WIDTH * LAYERS
    per_feature = 3 * WIDTH * LAYERS
    return LlamaForCausalLM(build(8 * round((num_parameters - fixed) / per_feature / 8))).to(DEVICE).train()


def mixer_against_llama(repeats: int) -> list[Figure]:
    """Tokens a second of training, flat mixer over Llama of equal parameters, both with their own loss."""
    ours = mixer()
    llama = llama_of(ours.num_parameters())
    input_ids = random_rows()
    ratios = paired_ratios(ours_step(ours, input_ids), ours_step(llama, input_ids), repeats)
    figure = Figure("mixer training tokens/s, over Llama's of equal parameters", ratios, 1.7)
    figure.notes.append(f"{ours.num_parameters() / 1e6:.2f} M and {llama.num_parameters() / 1e6:.2f} M parameters")
    return [figure]


def share_of_peak(repeats: int) -> list[Figure]:
    """Useful FLOPs of a flat mixer's step over what the machine's own matrix product does in that time."""
    input_ids = random_rows()
    shares = shares_of_peak(ours_step(mixer(), input_ids), mixer_step_flops(LENGTH, WIDTH, ROWS), repeats)
    return [Figure("share of the matrix-product peak in a training step", [100 * s for s in shares], 65, unit="%")]


CASES = {
    "mixer-steps": mixer_steps,
    "autoencoder-step": autoencoder_step,
    "mixer-against-llama": mixer_against_llama,
    "share-of-peak": share_of_peak,
}
