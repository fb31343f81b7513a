"""The sizes of `make bench-gpu`: the published ones, and tiny ones with which a CPU tests the code in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """What every case is measured on.

    Attributes:
        length: n, tokens of a row.
        llama_width, mixer_width: of decoders; the encoders are half and a quarter as wide.
        code: numbers in a row's code.
        mixing_lengths: of token mixing alone, `mixing_rows` rows of `mixer_width` features.
        head_tokens, head_vocabularies: of head and loss alone, at `llama_width`.
        entropy_tokens: of the one row whose exact entropies are measured.
        new_tokens, batches: of generation.
        compiler: `torch.compile`'s backend.
        peak_size: rows of the product that stands for the peak of a device whose data sheet is not known.
    """

    length: int = 1024
    rows: int = 16
    layers: int = 16
    vocabulary: int = 8000
    llama_width: int = 512
    mixer_width: int = 1024
    code: int = 64
    mixing_lengths: tuple[int, ...] = (512, 1024, 2048)
    mixing_rows: int = 16
    head_tokens: int = 16384
    head_vocabularies: tuple[int, ...] = (8000, 128_000)
    entropy_tokens: int = 512
    new_tokens: int = 128
    batches: tuple[int, ...] = (1, 32)
    compiler: str = "inductor"
    peak_size: int = 8192


SCALES = {
    "published": Scale(),
    "tiny": Scale(
        length=16,
        rows=2,
        layers=1,
        vocabulary=50,
        llama_width=32,
        mixer_width=32,
        code=4,
        mixing_lengths=(130,),
        mixing_rows=2,
        head_tokens=600,
        head_vocabularies=(50,),
        entropy_tokens=12,
        new_tokens=4,
        batches=(2,),
        compiler="eager",
        peak_size=128,
    ),
}
