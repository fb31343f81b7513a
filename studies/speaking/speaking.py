"""Does the code say something? Losses with its own code, another row's and none, and text regenerated from codes.

    eem train --config configs/speaking.yaml --output_dir runs/speaking
    python studies/speaking/speaking.py --model runs/speaking --output studies/speaking

Held-out text is cut into windows of the model's length. Losses are means over all their tokens, codes as stored.
Teacher forced: how often the likeliest token is the right one, given the right tokens before it. Free running: how
many tokens of a window `generate` gives right from the code alone, greedily, each after its own.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modeling_eem.bits import nats_to_bits
from modeling_eem.data import read_documents
from modeling_eem.evaluation.code_length import code_bits_of
from modeling_eem.report import Table, write_results

BATCH = 256


def windows(tokenizer: object, files: list[Path], length: int) -> Tensor:
    """Full windows of the text, `[R, length]`, BOS first."""
    ids = []
    for document in read_documents(files):
        tokens = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [
            [tokenizer.bos_token_id, *tokens[first : first + length - 1]]
            for first in range(0, len(tokens) - length + 2, length - 1)
        ]
    return torch.tensor(ids)


@torch.no_grad()
def losses_and_agreement(model: PreTrainedModel, rows_RT: Tensor, codes_RP: Tensor | None) -> tuple[float, float]:
    """Mean cross-entropy in nats a token, and the share of tokens that are the likeliest one."""
    total, right = 0.0, 0
    for first in range(0, len(rows_RT), BATCH):
        ids = rows_RT[first : first + BATCH]
        memory = {"occlude_memory": True} if codes_RP is None else {"code": codes_RP[first : first + BATCH]}
        logits = model(ids, use_cache=False, **memory).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        right += (logits.argmax(-1) == ids[:, 1:]).sum().item()
    tokens = rows_RT[:, 1:].numel()
    return total / tokens, right / tokens


@torch.no_grad()
def regenerate(model: PreTrainedModel, codes_RP: Tensor, bos: int, length: int) -> Tensor:
    """`[R, length]`, BOS first: greedy text from codes alone."""
    out = []
    for first in range(0, len(codes_RP), BATCH):
        code = codes_RP[first : first + BATCH]
        start = torch.full((len(code), 1), bos)
        out.append(
            model.generate(start, code=code, do_sample=False, min_new_tokens=length - 1, max_new_tokens=length - 1)
        )
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", default=[Path("asset:quickstart/validation.jsonl.gz")])
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    parser.add_argument("--examples", type=int, default=5)
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    length = model.config.max_position_embeddings
    rows_RT = windows(tokenizer, arguments.data, length)
    with torch.no_grad():
        codes_RP = torch.cat([model.encode(rows_RT[first : first + BATCH]) for first in range(0, len(rows_RT), BATCH)])
    results = {
        "its own code": losses_and_agreement(model, rows_RT, codes_RP),
        "another row's code": losses_and_agreement(model, rows_RT, codes_RP.roll(1, 0)),
        "no code": losses_and_agreement(model, rows_RT, None),
    }
    own = results["its own code"][0]
    generated_RT = regenerate(model, codes_RP, tokenizer.bos_token_id, length)
    free_running = (generated_RT[:, 1:] == rows_RT[:, 1:]).float().mean().item()
    bits_a_token = code_bits_of(model.config) / (length - 1)
    losses = Table(
        columns=("decoded with", "nats a token", "bits more a token", "teacher forced", "free running"),
        rows=[
            (name, loss, nats_to_bits(loss - own), share, free_running if name == "its own code" else None)
            for name, (loss, share) in results.items()
        ],
        title="What the code says",
        notes=(
            f"{len(rows_RT):,} held-out windows of {length - 1} tokens; a code is {model.config.code_size} numbers, "
            f"{bits_a_token:.0f} bits a token in {model.config.code_dtype}.",
        ),
        formats=dict.fromkeys(("nats a token", "bits more a token", "teacher forced", "free running"), ".3f"),
    )
    step = max(1, len(rows_RT) // arguments.examples)
    examples = Table(
        columns=("held-out text", "regenerated from its code"),
        rows=[
            (tokenizer.decode(one[1:]).strip(), tokenizer.decode(other[1:]).strip())
            for one, other in zip(rows_RT[::step][: arguments.examples], generated_RT[::step])
        ],
        title="Windows, evenly drawn",
    )
    content = {"data": [path.name for path in arguments.data], "losses": json.loads(losses.to_json())["rows"]}
    print(losses.to_markdown(), examples.to_markdown(), sep="\n")
    write_results(arguments.output, "speaking", [losses, examples], content)


if __name__ == "__main__":
    main()
