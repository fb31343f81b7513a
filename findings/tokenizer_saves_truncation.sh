#!/usr/bin/env bash
# Expected: calling a tokenizer with truncation=True or padding="max_length" concerns that call; the saved tokenizer is the same
#   with and without it.
# Happens: the call's maximum length stays in the backend, and save_pretrained writes it into tokenizer.json. Whoever reads that file
#   with the tokenizers library gets texts cut (or padded) to it. AutoTokenizer switches it off in each call, so the one who saved it
#   does not see it, but its backend_tokenizer cuts too. No warning.
# Version: transformers 5.23.0, tokenizers 0.23.3.
# Seen (tokens of "a b c d e f" by Tokenizer.from_file after one call with truncation=True, max_length=3): a b c; by AutoTokenizer
#   a b c d e f, by its backend_tokenizer a b c; of "a" after padding="max_length", max_length=4: a <pad> <pad> <pad>
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
python - 2>/dev/null <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def saved(folder, **options):
    """Tokens that the saved tokenizer.json gives."""
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["<pad>", *"abcdef"])}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<pad>")
    if options:
        tokenizer("a b", **options)
    tokenizer.save_pretrained(folder)
    return Tokenizer.from_file(f"{folder}/tokenizer.json")


text = "a b c d e f"
seen = {
    "no call": saved("plain").encode(text).tokens,
    "truncation": saved("cut", truncation=True, max_length=3).encode(text).tokens,
    "its backend": AutoTokenizer.from_pretrained("cut").backend_tokenizer.encode(text).tokens,
    "AutoTokenizer": AutoTokenizer.from_pretrained("cut").tokenize(text),
    "padding": saved("padded", padding="max_length", max_length=4).encode("a").tokens,
}
print(seen)
assert seen["no call"] == seen["AutoTokenizer"] == text.split()
assert seen["padding"] == ["a", "<pad>", "<pad>", "<pad>"]
assert seen["truncation"] == seen["its backend"] == ["a", "b", "c"], "a call's truncation is not saved now"
PY
