"""The float encoder of an entropy estimation model: turns windows into code numbers, for compression only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modeling_eem.loading import check_finite

from .float_model_parts import EEMConfig, TextEncoder

ENCODER_FILE, ENCODER_FOLDER = "encoder.safetensors", "encoder"
ROWS_AT_ONCE = 16


class CodeEncoder:
    """Computes real codes of windows. They are stored with each window, so they need not be exact."""

    def __init__(self, encoder: nn.Module, config: EEMConfig) -> None:
        self._encoder = encoder.eval()
        self._config = config

    @torch.no_grad()
    def values(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Real codes `[N, P]` of rows of tokens, BOS first."""
        codes = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            batch = rows[first : first + ROWS_AT_ONCE]
            width = max(map(len, batch))
            input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
            codes.append(self._encoder(input_ids, mask, self._config).float())
        return torch.cat(codes).numpy()

    def save(self, folder: Path) -> None:
        save_file(self._encoder.state_dict(), folder / ENCODER_FILE)
        # Not save_pretrained, which would put Python code beside the config: a codec model holds no Python code.
        (folder / ENCODER_FOLDER).mkdir(exist_ok=True)
        self._config.to_json_file(folder / ENCODER_FOLDER / "config.json")

    @classmethod
    def load(cls, folder: Path) -> "CodeEncoder":
        config = EEMConfig.from_pretrained(folder / ENCODER_FOLDER)
        encoder = TextEncoder(config, has_up=config.memory_introduction != "embedding")
        weights = load_file(folder / ENCODER_FILE)
        check_finite(weights.items(), folder / ENCODER_FILE)
        encoder.load_state_dict(weights)
        return cls(encoder, config)
