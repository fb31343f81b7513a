"""The bits that a codec model's file of a text stores for each token."""

from io import BytesIO
from typing import cast

import numpy as np
import torch

from modeling_eem.codec.codec import Codec
from modeling_eem.codec.integer_model import IntegerModel
from modeling_eem.codec.text import TokenTable, read_items
from modeling_eem.codec.window_encoder import Window, WindowEncoder, capacity
from modeling_eem.entropy.result import TokenEntropies
from modeling_eem.entropy.texts import TextRows
from modeling_eem.view.models import ViewedModel


def stored_entropies(viewed: ViewedModel, text: str) -> tuple[TokenEntropies, float, list[str]]:
    """Each token's `-log(count / total)` in nats, from the integers that the file is made with.

    A window that the codec stores as bytes is one piece; its bits are those of its payload.

    Returns:
        The values; the other bits of the file (codes, framing, rounding to bytes); notes for the reader.
    """
    codec = cast(Codec, viewed.model)
    model, data = cast(IntegerModel, codec.model), text.encode()
    table, full = TokenTable(model.backend_tokenizer, model.vocab_size), capacity(model, codec.carry)
    windows = list(WindowEncoder(model, codec.carry).encode(read_items(BytesIO(data), table, full)))
    file_bits = 8 * len(codec.compress(data))

    ids, lengths, bits = [], [], []
    for window in windows:
        of_window = _token_bits(model, window)
        ids.append(torch.tensor(window.tokens if window.tokens is not None else [0]))
        lengths += [len(window.data)] if window.tokens is None else [len(table.decode([i])) for i in window.tokens]
        bits.append(of_window)
    ends_T = torch.tensor(lengths).cumsum(0)
    offsets_TX = torch.stack([ends_T - torch.tensor(lengths), ends_T], dim=-1)
    values_T = torch.from_numpy(np.concatenate(bits)) * np.log(2)
    rows = TextRows([torch.cat(ids)], (data,), [offsets_TX])
    entropies = TokenEntropies.of_rows(rows, [values_T], method="stored")
    return entropies, file_bits - float(np.concatenate(bits).sum()), _notes(windows, file_bits)


def _token_bits(model: IntegerModel, window: Window) -> np.ndarray:
    if window.tokens is None:
        return np.array([8.0 * len(window.payload)])
    codes = None if window.code is None else [window.code]
    return model.token_costs_bits([window.tokens], [list(window.context)], codes)[0]


def _notes(windows: list[Window], file_bits: int) -> list[str]:
    coded = sum(window.kind.has_code for window in windows)
    as_bytes = sum(window.tokens is None for window in windows)
    made = f"{file_bits // 8:,} bytes, {len(windows):,} window{'s' * (len(windows) != 1)}"
    return [f"The file: {made}, {coded:,} with a code, {as_bytes:,} of plain bytes (shorter without the model)."]
