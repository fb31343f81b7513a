#!/usr/bin/env bash
# Expected: the pieces of a TextStreamer or TextIteratorStreamer, put together, are what decode() makes of the same tokens.
# Happens: with a tokenizer that marks spaces by U+2581 (Metaspace, or the decoder steps that Llama 2's has) each line after the
#   first loses a leading space: at a line break the streamer decodes the next line on its own, and a text's first space is dropped in
#   decoding. Streamed Python code has wrong indentation. A byte-level tokenizer streams exactly. No warning.
# Version: transformers 5.23.0, tokenizers 0.23.3.
# Seen: decode() 'if x:\n    y\n    z', streamed 'if x:\n   y\n   z'; byte-level the same in both
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
python - 2>/dev/null <<'PY'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer

text = "if x:\n    y\n    z"
kinds = {
    "Metaspace": (pre_tokenizers.Metaspace(split=False), decoders.Metaspace(split=False)),
    "steps": (
        pre_tokenizers.Metaspace(split=False),
        decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
    "byte-level": (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
}
seen = {}
for kind, (before, after) in kinds.items():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = before, after
    backend.train_from_iterator([text], trainers.BpeTrainer(vocab_size=1, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer(text)["input_ids"]
    streamer = TextIteratorStreamer(tokenizer)
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    streamed, decoded = "".join(streamer), tokenizer.decode(ids)
    assert decoded == text
    seen[kind] = streamed
    print(f"{kind}: decode() {decoded!r}, streamed {streamed!r}")
assert seen["byte-level"] == text
assert seen["Metaspace"] == seen["steps"] == "if x:\n   y\n   z", "lines keep their first space now"
PY
