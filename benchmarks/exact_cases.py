"""Exact entropies against two full-width passes a token, which give the same values.

The plain way shows the model the row cut after token j and after token j - 1, both padded to the context, with whole
logits, and mixes tokens by the plain Conv1d; it gets batches as large as ours, so only the work differs.
"""

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, load_from_disk
from figures import Figure
from paired import paired_ratios, seconds
from plain import PlainMixing, load_conv
from surprisal_cases import sentences
from torch import Tensor, nn
from training_cases import DEVICE, VOCABULARY
from transformers import AutoTokenizer, LlamaConfig, PreTrainedConfig

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig
from modeling_eem.data.tokenizer import encode_text
from modeling_eem.entropy import ExactEntropy
from modeling_eem.models.modeling_masked_mixer import MaskedMixerBlock

CONTEXT, BATCH_TOKENS = 256, 2048
ENCODER_WIDTH, DECODER_WIDTH, LAYERS = 64, 128, 4
LEAST_LENGTH = 32
MOST_PAIRS = 5  # a pair takes many seconds
COMMAND_ROWS = 240
ROOT = Path(__file__).parents[1]


def llama(width: int, length: int, **tokens: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=length,
        **tokens,
    )


def mixer(width: int, length: int, **tokens: int) -> MaskedMixerConfig:
    return MaskedMixerConfig(hidden_size=width, num_hidden_layers=LAYERS, max_position_embeddings=length, **tokens)


def build(backbone: Callable[..., PreTrainedConfig]) -> EEMForCausalLM:
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 0}
    config = EEMConfig(
        encoder_config=backbone(ENCODER_WIDTH, CONTEXT, **tokens),
        decoder_config=backbone(DECODER_WIDTH, CONTEXT + 1, **tokens),
        random_prefix_probability=0.1,
    )
    return EEMForCausalLM(config).to(DEVICE).eval()


class PlainMixingOfBlock(nn.Module):
    """`PlainMixing` where a block of ours has its mixing."""

    def __init__(self, block: MaskedMixerBlock):
        super().__init__()
        self.mixing = PlainMixing(len(block.mixing.bias), 1)
        load_conv(self.mixing.conv, block.mixing.weight, block.mixing.bias)

    def forward(self, x_TBD: Tensor, *_: object) -> Tensor:
        missing = self.mixing.conv.in_channels - len(x_TBD)
        x_BTD = F.pad(x_TBD.transpose(0, 1), (0, 0, 0, missing))
        return self.mixing(x_BTD)[:, : len(x_TBD)].transpose(0, 1)


@torch.no_grad()
def plain_copy(model: EEMForCausalLM) -> EEMForCausalLM:
    """The same model, whose mixers mix tokens by the plain Conv1d."""
    plain = copy.deepcopy(model)
    for block in plain.modules():
        if isinstance(block, MaskedMixerBlock):
            block.mixing = PlainMixingOfBlock(block)
    return plain.to(DEVICE).eval()


@torch.no_grad()
def two_full_passes_a_token(model: EEMForCausalLM, row_T: Tensor, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """`[T - 1]` values of a row that begins with BOS."""
    context = model.config.max_position_embeddings
    padded_T = F.pad(row_T, (0, context - len(row_T)), value=1)
    lengths = torch.tensor([length for last in range(2, len(row_T) + 1) for length in (last, last - 1)])
    sums = []
    for lengths_B in lengths.to(row_T.device).split(max(1, batch_tokens // context)):
        mask_BT = torch.arange(context, device=row_T.device) < lengths_B[:, None]
        ids_BT = padded_T.expand(len(lengths_B), -1)
        logits_BTV = model(ids_BT, attention_mask=mask_BT.long(), labels=ids_BT, use_cache=False).logits
        nats_BT = F.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none")
        sums.append((nats_BT * mask_BT[:, 1:]).double().sum(-1))
    longer, shorter = torch.cat(sums).view(-1, 2).T
    return longer - shorter


def exact_entropies(repeats: int) -> list[Figure]:
    """Full rows, and rows of lengths drawn evenly between 32 and 256 tokens, a pair a row."""
    figures = []
    repeats = min(repeats, MOST_PAIRS)
    for name, backbone in (("Llama–Llama", llama), ("mixer–mixer", mixer)):
        torch.manual_seed(0)
        model = build(backbone)
        plain, estimator = plain_copy(model), ExactEntropy(model, BATCH_TOKENS)
        step = (CONTEXT - LEAST_LENGTH) / max(repeats - 1, 1)
        drawn = [CONTEXT - round(index * step) for index in range(repeats)]
        for what, lengths, floor in (("full rows", [CONTEXT] * repeats, 6.0), ("32 to 256 tokens", drawn, 12.0)):
            ratios = [ratio for length in lengths for ratio in _paired(plain, estimator, length)]
            figures.append(Figure(f"exact entropies, {name}, {what}, over two passes a token", ratios, floor))
        figures[-1].notes.append(
            f"Exact entropies, {name}, rows of {', '.join(map(str, drawn))} tokens, each of which the plain way pads "
            f"to {CONTEXT}: {', '.join(f'{ratio:.1f}' for ratio in ratios)}."
        )
    return figures


def _paired(plain: EEMForCausalLM, estimator: ExactEntropy, length: int) -> list[float]:
    """One pair, on a row of its own; the values are compared as well."""
    row_T = torch.cat([torch.zeros(1).long(), torch.randint(2, VOCABULARY, (length - 1,))]).to(DEVICE)
    values = {}

    def ours() -> None:
        values["ours"] = estimator(input_ids=row_T[None]).values[0, 1:]

    def theirs() -> None:
        values["theirs"] = two_full_passes_a_token(plain, row_T).cpu()

    ratios = paired_ratios(ours, theirs, repeats=1, warm_up=False)
    apart = (values["ours"] - values["theirs"]).abs().max().item()
    if apart > 1e-3:  # the plain way sums in float32
        raise AssertionError(f"exact entropies of {length} tokens differ by {apart} nats")
    return ratios


def exact_command(repeats: int) -> list[Figure]:
    """`eem entropy` with its start, reading and writing, on rows of 32 to 256 tokens.

    Two passes a token would take many minutes. Each is as wide as the context, so all tokens cost the same: their time
    is that of some rows before and after each run of the command, a token, times the command's tokens.
    """
    torch.manual_seed(0)
    model = build(llama)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    draw = random.Random(0)
    ids = encode_text(tokenizer, "\n".join(sentences(2000)))
    rows, start = [], 0
    for _ in range(COMMAND_ROWS):
        length = draw.randrange(LEAST_LENGTH, CONTEXT + 1)
        rows.append([tokenizer.bos_token_id, *ids[start : start + length - 1]])
        start += length - 1
    samples = [torch.tensor(row).to(DEVICE) for row in rows[:2]]
    sample_tokens, tokens = sum(len(row) - 1 for row in samples), sum(len(row) - 1 for row in rows)
    plain = plain_copy(model)
    ratios = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        Dataset.from_dict({"input_ids": rows}).save_to_disk(folder / "rows")
        command = [sys.executable, "-m", "eem", "entropy", "--model", folder / "model", "--method", "exact"]
        command += ["--data", folder / "rows", "--output"]

        def theirs() -> float:
            return seconds(lambda: [two_full_passes_a_token(plain, row) for row in samples]) / sample_tokens * tokens

        for repeat in range(min(repeats, MOST_PAIRS)):
            before = theirs()
            run = [str(part) for part in [*command, folder / f"out-{repeat}"]]
            ours = seconds(lambda run=run: subprocess.run(run, check=True, capture_output=True))
            ratios.append((before + theirs()) / 2 / ours)
        found = load_from_disk(str(folder / "out-0"))
        found = next(iter(found.values())) if isinstance(found, DatasetDict) else found
        values = torch.tensor(found[0]["token_entropies"][1:]).double()
    apart = (values - two_full_passes_a_token(plain, samples[0]).cpu()).abs().max().item()
    if apart > 1e-3:  # the plain way sums in float32
        raise AssertionError(f"exact entropies of the command differ by {apart} nats")
    what = "`eem entropy --method exact`, start and files included, over two passes a token"
    note = f"The command: {len(rows)} rows of 32 to 256 tokens, {tokens:,} in all; the plain way on {sample_tokens}."
    return [Figure(what, ratios, 10.5, notes=[note])]


CASES = {"exact-entropies": exact_entropies, "exact-command": exact_command}
