"""Masked mixer configuration.

What is unusual: there is no attention and no positional encoding. Order enters only through the mixing matrices,
which are as long as the context, so `max_position_embeddings` is part of the weights' shape.
"""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    Given = TypeVar("Given")
    Held = TypeVar("Held")

    class CompletedField(Generic[Given, Held]):
        """For type checkers: a config field that may be given as `Given` and is `Held` in the finished config."""

        def __get__(self, config: object, config_class: Any = None) -> Held: ...

        def __set__(self, config: object, value: Given) -> None: ...


@strict
class MaskedMixerConfig(PreTrainedConfig):
    r"""Configuration of a masked mixer (Badger 2024, arXiv 2409.01482).

    Args:
        vocab_size: number of token ids.
        hidden_size: width `d` of the residual stream.
        intermediate_size: width of the feed-forward layers; `4 * hidden_size` by default.
        num_hidden_layers: number of blocks.
        max_position_embeddings: context length `n`, the side of every mixing matrix.
        num_mixing_heads: 0 for flat mixing (one matrix shared by all features), else the number `h` of heads, each
            with a projection to `d / h` features and a matrix of its own.
        mixing_kernel_size: taps `k` of the mixing convolution along the feature axis.
        is_causal: whether position `i` sees only positions `j <= i`. `False` is for encoders and autoencoders.
        position_alignment: `"left"` puts the first real token on row 0 of the mixing matrices, `"right"` puts the
            last real token on row `n - 1` (an encoder whose last output is its embedding; no cached generation).
        hidden_act: activation of the feed-forward layers; `"gelu"` is the exact one.
        layer_norm_eps: epsilon of the layer norms.
        use_cache: whether `forward` returns a cache of mixing inputs.
        tie_word_embeddings: whether the language-model head shares the token embedding's weights.
        pad_token_id, bos_token_id, eos_token_id: special token ids.

    Raises:
        ValueError: `hidden_size` is not divisible by `num_mixing_heads`, a size is not positive, or
            `position_alignment` is unknown.
    """

    model_type = "masked_mixer"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 8000
    hidden_size: int = 512
    if TYPE_CHECKING:
        intermediate_size: CompletedField[int | None, int] = CompletedField()
    else:
        intermediate_size: int | None = None
    num_hidden_layers: int = 8
    max_position_embeddings: int = 512
    num_mixing_heads: int = 0
    mixing_kernel_size: int = 1
    is_causal: bool = True
    position_alignment: str = "left"
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.check()
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """ValueError for values that do not fit; models check again, since attributes can be set later."""
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
        for name in (*sizes, "mixing_kernel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.num_mixing_heads < 0:
            raise ValueError(f"num_mixing_heads must be 0 (flat) or positive, got {self.num_mixing_heads}.")
        if self.num_mixing_heads and self.hidden_size % self.num_mixing_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_mixing_heads ({self.num_mixing_heads})."
            )
        if self.position_alignment not in ("left", "right"):
            raise ValueError(f"position_alignment must be 'left' or 'right', got {self.position_alignment!r}.")


__all__ = ["MaskedMixerConfig"]
