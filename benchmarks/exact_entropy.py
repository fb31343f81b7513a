"""How much faster exact entropies are than two full-width passes a token, which give the same values.

    python benchmarks/exact_entropy.py --output records/exact-entropy

The plain way shows the model the row cut after token j and after token j - 1, both padded to the context, with whole
logits; it gets batches as large as ours, so only the work differs. Both are run in turn in one process, and seconds
are those of its CPU time: the ratio holds on a busy machine too.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from paired import Figure
from rich.console import Console
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig
from modeling_eem.entropy import ExactEntropy
from modeling_eem.report import Table, write_atomically
from modeling_eem.report.provenance import provenance

VOCABULARY, CONTEXT, BATCH_TOKENS = 2000, 256, 2048
ENCODER_WIDTH, DECODER_WIDTH, LAYERS = 64, 128, 4
ROWS = {"full rows": [CONTEXT], "rows of 32–256": [32, 144, 256]}
FLOOR = 5.0


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
    return EEMForCausalLM(config).eval()


@torch.no_grad()
def two_full_passes_a_token(model: EEMForCausalLM, rows: list[Tensor]) -> list[Tensor]:
    """`[t - 1]` values for each row `[t]`."""
    return [_differences(model, row_T) for row_T in rows]


def _differences(model: EEMForCausalLM, row_T: Tensor) -> Tensor:
    padded_T = F.pad(row_T, (0, CONTEXT - len(row_T)), value=1)
    lengths = torch.tensor([length for last in range(2, len(row_T) + 1) for length in (last, last - 1)])
    sums = []
    for lengths_B in lengths.split(BATCH_TOKENS // CONTEXT):
        mask_BT = torch.arange(CONTEXT) < lengths_B[:, None]
        ids_BT = padded_T.expand(len(lengths_B), -1)
        logits_BTV = model(ids_BT, attention_mask=mask_BT.long(), labels=ids_BT, use_cache=False).logits
        nats_BT = F.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), ids_BT[:, 1:], reduction="none")
        sums.append((nats_BT * mask_BT[:, 1:]).double().sum(-1))
    longer, shorter = torch.cat(sums).view(-1, 2).T
    return longer - shorter


def exact_entropy(
    output: Annotated[Path | None, typer.Option(help="Where to write .md and .json, without the ending.")] = None,
    repeats: Annotated[int, typer.Option(help="Pairs that a ratio is the median of.")] = 3,
) -> None:
    """Measure, print the table, and exit with 1 if a floor is missed."""
    console = Console()
    rows, measured = [], {}
    for name, backbone in (("Llama–Llama", llama), ("mixer–mixer", mixer)):
        torch.manual_seed(0)
        model = build(backbone)
        for which, lengths in ROWS.items():
            texts = [torch.cat([torch.zeros(1).long(), torch.randint(2, VOCABULARY, (n - 1,))]) for n in lengths]
            ids_BT = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=1)
            mask_BT = torch.arange(ids_BT.shape[1]) < torch.tensor(lengths)[:, None]
            estimator = ExactEntropy(model, BATCH_TOKENS)
            ratios, speeds, difference = [], [], 0.0
            for repeat in range(repeats):
                with console.status(f"{name}, {which}: pair {repeat + 1} of {repeats}"):
                    began = time.process_time()
                    result = estimator(input_ids=ids_BT, attention_mask=mask_BT)
                    ours = time.process_time() - began
                    expected = two_full_passes_a_token(model, texts)
                    ratios.append((time.process_time() - began - ours) / ours)
                speeds.append((sum(lengths) - len(lengths)) / ours)
                apart = [(values[1:] - plain).abs().max().item() for values, plain in zip(result.rows(), expected)]
                difference = max(difference, *apart)
            figure = Figure(f"{name}, {which}", ratios, floor=FLOOR)
            measured[figure.what] = ratios
            rows.append(
                (
                    figure.what,
                    figure.median,
                    min(ratios),
                    max(ratios),
                    figure.floor,
                    statistics.median(speeds),
                    difference,
                    "BEHIND" if figure.is_behind else "ok",
                )
            )
    table = _table(rows, repeats)
    console.print(table)
    if output is not None:
        source = provenance()
        lines = "\n".join(f"- {what}: {value}" for what, value in source.items())
        text = f"# Exact entropies against two full-width passes a token\n\n{lines}\n\n{table.to_markdown()}"
        write_atomically(output.with_suffix(".md"), text)
        content = {"source": source, "ratios": measured, "table": json.loads(table.to_json())}
        write_atomically(output.with_suffix(".json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if any(row[-1] == "BEHIND" for row in rows):
        raise typer.Exit(1)


def _table(rows: list[tuple[str, float, float, float, float, float, float, str]], repeats: int) -> Table:
    return Table(
        columns=("what", "× faster", "least", "most", "floor", "tokens/s", "nats apart", ""),
        rows=rows,
        notes=(
            f"Encoder {ENCODER_WIDTH} wide, decoder {DECODER_WIDTH}, {LAYERS} layers each, {VOCABULARY:,} tokens, "
            f"context {CONTEXT}; passes of {BATCH_TOKENS:,} tokens; {torch.get_num_threads()} threads.",
            f"Medians of {repeats} pairs run in turn, in CPU time; tokens/s are ours, of the text.",
            "Rows of the second kind hold 32, 144 and 256 tokens; the plain way pads each to the context.",
        ),
        formats={
            "× faster": ".1f",
            "least": ".1f",
            "most": ".1f",
            "floor": ".0f",
            "tokens/s": ".0f",
            "nats apart": ".1e",
        },
    )


if __name__ == "__main__":
    typer.run(exact_entropy)
