"""The cache of an entropy estimation model: its decoder's, and what that was filled with."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticLayer

from .cache_masked_mixer import refuse_cache
from .configuration_eem import EEMConfig
from .layout_masked_mixer import is_readable


class EEMCache(DynamicCache):
    """The decoder's cache, its length counted in text tokens, and the code and occlusion they were decoded with.

    The decoder fills `decoder_cache`, which shares the layers and also counts the memory's position.
    """

    def __init__(self, config: EEMConfig, decoder_cache: Cache | None = None):
        if decoder_cache is not None and any(isinstance(layer, StaticLayer) for layer in decoder_cache.layers):
            refuse_cache(decoder_cache)
        super().__init__(config=config.decoder_config)
        self.num_memory_positions = config.num_memory_positions
        self.decoder_cache = DynamicCache(config=config.decoder_config) if decoder_cache is None else decoder_cache
        self.layers = self.decoder_cache.layers
        self.code: Tensor | None = None
        self.occluded: bool | Tensor | None = None  # None: not known

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(super().get_seq_length(layer_idx) - self.num_memory_positions, 0)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_rows(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_rows(lambda rows: rows[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Without a token of text the memory goes, too: the next call introduces it again."""
        super().crop(tokens_to_remove)
        if not self.get_seq_length():
            self.reset()

    def reset(self) -> None:
        super().reset()
        self.code = self.occluded = None

    def _map_rows(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.code is not None:
            self.code = function(self.code)
        if isinstance(self.occluded, Tensor):
            self.occluded = function(self.occluded)


def check_same_code(cached: Tensor | None, code: Tensor) -> None:
    """ValueError if a filled cache is another code's. On a CPU only: elsewhere reading would wait, token by token."""
    if cached is not None and code.is_cpu and is_readable(code) and not torch.equal(cached, code.to(cached)):
        raise ValueError("this cache was filled with another code: leave code out, or begin without a cache.")


def same_occlusion(cached: bool | Tensor | None, asked: bool | Tensor) -> bool | Tensor:
    """That of a filled cache: its text was decoded with or without the memory, and the rest is decoded alike."""
    if cached is None:  # a cache that came without this model's own state
        return asked
    if asked is False or asked is cached:
        return cached
    if isinstance(cached, Tensor) and isinstance(asked, Tensor) and torch.equal(cached, asked):
        return cached
    raise ValueError("this cache was filled with another occlude_memory: leave it out, or begin without a cache.")


__all__ = ["EEMCache", "check_same_code", "same_occlusion"]
