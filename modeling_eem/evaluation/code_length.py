"""Held-out code length: the honest bits of rows, by any causal model or entropy estimation model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from modeling_eem.bits import CodeLength, window_length_bits
from modeling_eem.configuration_eem import EncoderDecoderConfig
from modeling_eem.data.collator import CausalCollator
from modeling_eem.data.rows import IGNORED_LABEL, Row
from modeling_eem.quantization_eem import CODE_FORMATS
from modeling_eem.training import Run


def stored_code_bits(model: PreTrainedModel) -> float:
    """Bits of one window's code as the model stores it: its numbers in `code_dtype`, the scale included.

    A causal model has no code: 0.

    Raises:
        ValueError: a model with a code but without `code_dtype`: how many bits a number takes is then not settled.
    """
    config = model.config
    if not isinstance(config, EncoderDecoderConfig):
        return 0.0
    if config.code_dtype is None:
        raise ValueError(
            "the model's code has no storage format, so its bits cannot be counted: set config.code_dtype, for "
            "example to 'float8_e4m3fn'."
        )
    return CODE_FORMATS[config.code_dtype].code_bits(config.code_size)


@torch.no_grad()
def held_out_code_length(
    model: PreTrainedModel, rows: Sequence[Row], collator: CausalCollator, batch_size: int = 16
) -> CodeLength:
    """The bits with which the model tells `rows` (of mode `windows`), one window at a time.

    A window costs its cross-entropy, its code as stored (the loss is measured with the rounded code), and, if it is
    shorter than the context, its length. BOS is given. Rows are read in order of length, which changes no value.
    """
    code_bits = stored_code_bits(model)
    # Whole rows, and padding where no causal model can see it.
    collator = replace(collator, random_prefix_probability=0.0, padding_side="right")
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    was_training = model.training
    model.eval()
    try:
        nats = sum(
            _summed_nats(model, collator(ordered[start : start + batch_size]))
            for start in range(0, len(ordered), batch_size)
        )
    finally:
        model.train(was_training)
    lengths = [len(row["input_ids"]) for row in rows]
    return CodeLength(
        nll_nats=nats,
        code_bits=code_bits * len(rows),
        side_bits=sum(window_length_bits(length, collator.max_length) for length in lengths),
        num_bytes=sum(row["num_bytes"] for row in rows),
        num_tokens=sum(length - 1 for length in lengths),
    )


def held_out(run: Run) -> CodeLength:
    """`held_out_code_length` of a run's held-out rows."""
    return held_out_code_length(run.model, run.held_out_rows, run.collator)


def _summed_nats(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """The loss is the mean over what is scored, for every causal language model."""
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask", "labels")}
    num_scored = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum().item()
    return model(**inputs, use_cache=False).loss.double().item() * num_scored
