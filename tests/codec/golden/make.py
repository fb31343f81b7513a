"""Writes the golden files of the format version at hand; those of released versions are never written again.

    python tests/codec/golden/make.py FOLDER      (tests/codec/golden/version_1, before its release)

Two tiny models are trained on the text for seconds: a causal mixer, and an EEM that is made to choose its code. All
must decode for ever: by the package's decoders and by the reference decoder.
"""

import hashlib
import random
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_eem import EEMConfig, EEMForCausalLM, MaskedMixerConfig, MaskedMixerForCausalLM
from modeling_eem.codec import Codec, IntegerModel, build_integer_model
from modeling_eem.data import train_tokenizer
from modeling_eem.data.tokenizer import encode_text

CONTEXT = 64
TEXT = "the sea was calm and a ship came over it from far away with grey sails at dawn while we slept no wind rose"


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    draw = random.Random(0)
    text = _text(draw)
    noise = draw.randbytes(300)
    data = text.encode() + bytes(5000) + "naïve € 🙂 <|endoftext|> ".encode() + text[:1500].encode() + noise
    (folder / "plain").write_bytes(data)
    tokenizer = train_tokenizer([text], 300)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "max_position_embeddings": CONTEXT,
    }
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    causal = MaskedMixerConfig(**sizes, **special)
    eem = EEMConfig(
        encoder_config={**sizes, **special, "position_alignment": "right"},
        decoder_config={**sizes, **special, "max_position_embeddings": CONTEXT + 1},
        memory_introduction="token",
        bottleneck_size=4,
        code_dtype="int8",
    )
    models: dict[str, PreTrainedModel] = {"causal": MaskedMixerForCausalLM(causal), "eem": EEMForCausalLM(eem)}
    for name, model in models.items():
        _train(model, tokenizer, text)
        build_integer_model(model, tokenizer, [text]).save_pretrained(folder / name)
    (folder / "bytes.eem").write_bytes(Codec(None).compress(data))
    eager = _Eager(_load(folder / "eem"))
    with patch(
        "modeling_eem.codec.window_encoder._mended", lambda parts: parts
    ):  # bytes would win: the text is that small
        (folder / "causal.eem").write_bytes(Codec(_load(folder / "causal")).compress(data))
        (folder / "carry.eem").write_bytes(Codec(_load(folder / "causal"), carry=True).compress(data))
        (folder / "eem.eem").write_bytes(Codec(eager).compress(data))
        (folder / "eem_carry.eem").write_bytes(Codec(eager, carry=True).compress(data))
    for path in sorted(folder.glob("*.eem")):
        print(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
        print("   " + "\n   ".join(Codec(None).list(path.read_bytes()).lines()))


def _text(draw: random.Random) -> str:
    """Lines of words, each followed by one of three."""
    words, at, lines = TEXT.split(), 0, []
    for _ in range(150):
        line = []
        for _ in range(draw.randrange(4, 12)):
            at = (3 * at + draw.randrange(3)) % len(words)
            line.append(words[at])
        lines.append(" ".join(line) + ".\r\n")
    return "".join(lines)


def _load(folder: Path) -> IntegerModel:
    return IntegerModel.from_pretrained(folder)


def _train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    torch.manual_seed(0)
    ids = encode_text(tokenizer, text)
    length = CONTEXT - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        starts = torch.randint(len(ids) - length, (16,)).tolist()
        batch = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + length]] for start in starts])
        loss = model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{type(model).__name__}: {loss.item():.3f} nats a token")
    model.eval()


class _Eager:
    """A model whose windows always choose their code, except every fourth: the golden files hold both."""

    def __init__(self, model: IntegerModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_windows(self, windows: Any, contexts: Any = None, codes: Any = None) -> list[bytes]:
        payloads = self._model.encode_windows(windows, contexts, codes)
        if codes is None:
            return [payload + bytes(9 * (sum(tokens) % 4 > 0)) for tokens, payload in zip(windows, payloads)]
        return payloads


if __name__ == "__main__":
    main(Path(sys.argv[1]))
