"""A cache of mixing inputs that grows in place."""

from typing import NoReturn

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .mixing_masked_mixer import LookAhead

_LEAST_ROOM = 64  # tokens that a layer has room for from the start


class MixingLayer(DynamicLayer):
    """The inputs that a mixer's layer has mixed, as `keys [B, 1, T, D]`; the `values` are empty.

    `keys` is a view of a buffer `[room, B, D]` that doubles when it is full. A new token costs one row, where a cache
    that concatenates copies all earlier rows. Mixing reads the buffer as one matrix `[T, B * D]`. If something
    replaces `keys` (beam search, cropping), the next update copies them into a new buffer. With gradients on it
    concatenates too: autograd may hold what was cached.

    `ahead` is what `next_token_mixing` keeps from one token to the next; it is dropped when `keys` are replaced. Beam
    search replaces them at every token, where looking ahead would not pay: `is_steady` is then False.

    Positions are not stored: they follow from the mask. `is_ranked` is False if a caller gave other positions.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.buffer_TBD: Tensor | None = None
        self.view: Tensor | None = None
        self.ahead: LookAhead | None = None
        self.is_steady = False
        self.is_ranked = True

    def offload(self) -> None:
        super().offload()
        if self.is_initialized:  # the buffer is the memory that offloading is to free
            self.buffer_TBD = self.view = self.ahead = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append `[B, 1, Q, D]` and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        is_steady = self.keys is self.view
        # What was summed ahead is constant: a step with gradients sums the weights anew.
        self.is_steady = is_steady and not torch.is_grad_enabled()
        if not is_steady:
            self.buffer_TBD = self.ahead = None
        if torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)  # never overwrites what autograd holds
        past_length = self.get_seq_length()
        past = self.keys if past_length else None
        if past is not None and len(past) != len(key_states):
            raise ValueError(f"the cache holds {len(past)} rows and got {len(key_states)} new ones.")
        length = past_length + key_states.shape[-2]
        # What inference mode has made cannot be written to outside it.
        is_closed = self.buffer_TBD is not None and self.buffer_TBD.is_inference() != torch.is_inference_mode_enabled()
        if self.buffer_TBD is None or length > len(self.buffer_TBD) or is_closed:
            batch_size, _, _, width = key_states.shape
            self.buffer_TBD = key_states.new_empty(max(2 * length, _LEAST_ROOM), batch_size, width)
            if past is not None:
                self.buffer_TBD[:past_length] = past[:, 0].transpose(0, 1)
        self.buffer_TBD[past_length:length] = key_states[:, 0].transpose(0, 1)
        self.view = self.keys = self.buffer_TBD[:length].transpose(0, 1)[:, None]
        self.values = self.keys[..., :0]
        return self.keys, self.values


def grow_in_place(cache: Cache) -> None:
    """Make an empty cache use `MixingLayer`s instead of layers that concatenate.

    Raises:
        ValueError: for a cache of another kind (static, quantized, sliding), or with an attention's keys and values.
    """
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = MixingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[index] = MixingLayer()
    if any(type(layer) not in (DynamicLayer, MixingLayer) for layer in cache.layers):
        refuse_cache(cache)
    # A mixer's layers have no values; before the first token they may not exist.
    values = (layer.values for layer in cache.layers if isinstance(layer, DynamicLayer) and layer.is_initialized)
    if any(each is not None and each.numel() for each in values):
        raise ValueError("this cache holds an attention's keys and values (as in prefix tuning), which a mixer lacks.")


def refuse_cache(cache: Cache) -> NoReturn:
    raise ValueError(
        f"this model's cache grows with the text and cannot be a {type(cache).__name__}: leave cache_implementation "
        "out, or set it to 'dynamic'."
    )


def is_ranked(cache: Cache) -> bool:
    """Whether the cached tokens stand where the attention mask puts them, on rows 0, 1, 2 … of W."""
    return all(layer.is_ranked for layer in cache.layers if isinstance(layer, MixingLayer) and layer.is_initialized)


def set_ranked(cache: Cache, value: bool) -> None:
    for layer in cache.layers:
        if isinstance(layer, MixingLayer):
            layer.is_ranked = value


__all__ = ["MixingLayer", "grow_in_place", "is_ranked", "refuse_cache", "set_ranked"]
