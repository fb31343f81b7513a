"""Surprisals of many short sentences against minicons: the same model, tokenizer and texts, values compared first."""

import gzip
import json
import random
import re
import string
import tempfile
from pathlib import Path

import torch
from figures import Figure
from minicons.scorer import IncrementalLMScorer
from paired import paired_ratios
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from modeling_eem.data import train_tokenizer
from modeling_eem.entropy import CausalEntropy
from modeling_eem.entropy.base import length_batches, pad_right
from modeling_eem.entropy.texts import rows_of_texts

ROOT = Path(__file__).parents[1]
_TEXT = ROOT / "modeling_eem/assets/quickstart/train.jsonl.gz"
_TOLERANCE = 1e-4
_BATCH = 16


def sentences(count: int) -> list[str]:
    """Sentences of 40 to 200 characters of the text that ships, in its order."""
    found: list[str] = []
    with gzip.open(_TEXT, "rt") as lines:
        for line in lines:
            parts = re.split(r"(?<=[.!?])\s+", json.loads(line)["text"])
            found += [part for part in parts if 40 <= len(part) <= 200 and part.isascii()]
            if len(found) >= count:
                return found[:count]
    raise ValueError(f"the text that ships has only {len(found)} sentences.")


def large_tokenizer(size: int = 128_000) -> PreTrainedTokenizerBase:
    """A byte-level BPE as large as those of today's models: of the text that ships, and of random words to fill it."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(4, 13))) for _ in range(size // 2)]
    with gzip.open(_TEXT, "rt") as lines:
        return train_tokenizer([*(json.loads(line)["text"] for line in lines), *words], size)


def surprisals(repeats: int, count: int = 600) -> list[Figure]:
    """With 8,000 tokens and with 128,000."""
    small = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    return [
        figure for tokenizer in (small, large_tokenizer()) for figure in surprisal_figures(repeats, count, tokenizer)
    ]


def surprisal_figures(repeats: int, count: int, tokenizer: PreTrainedTokenizerBase) -> list[Figure]:
    """Our time against minicons' in batches of 16, and against a bare forward pass of the same texts.

    Raises:
        ValueError: where a value differs from minicons' by more than 1e-4 nats.
    """
    texts = sentences(count)
    with tempfile.TemporaryDirectory() as folder:
        _save_model(tokenizer, folder)
        scorer = IncrementalLMScorer(folder, "cpu")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    estimator = CausalEntropy(model)

    def theirs() -> list[list[tuple[str, float]]]:
        starts = range(0, len(texts), _BATCH)
        return [row for start in starts for row in scorer.token_score(texts[start : start + _BATCH], surprisal=True)]

    rows = rows_of_texts(texts, tokenizer).ids
    batches = [
        pad_right([rows[index] for index in batch])[0]
        for batch in length_batches([len(ids_T) for ids_T in rows], estimator.batch_tokens)
    ]

    @torch.no_grad()
    def bare() -> None:
        for ids_BT in batches:
            model(input_ids=ids_BT, use_cache=False)

    ours = estimator(texts, tokenizer)
    worst = 0.0
    for values_T, pairs in zip(ours.rows(), theirs()):
        expected_T = torch.tensor([value for _, value in pairs[1:]], dtype=torch.float64)
        worst = max(worst, float((values_T[1:] - expected_T).abs().max()))
    if worst > _TOLERANCE:
        raise ValueError(f"a value differs from minicons' by {worst:.2g} nats.")
    tokens = sum(map(len, rows))
    notes = [
        f"{len(texts)} sentences, {tokens:,} of {len(tokenizer):,} tokens, {model.num_parameters() / 1e6:.1f} M; "
        f"worst {worst:.1e} nats"
    ]
    against = paired_ratios(lambda: estimator(texts, tokenizer), theirs, repeats)
    bound = paired_ratios(lambda: estimator(texts, tokenizer), bare, repeats)
    return [
        Figure(f"causal entropies, {len(tokenizer):,} tokens, speed over minicons'", against, 1.5, notes=notes),
        Figure(f"causal entropies, {len(tokenizer):,} tokens, speed over a bare forward pass", bound, 0.8),
    ]


def _save_model(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CASES = {"surprisal": surprisals}
