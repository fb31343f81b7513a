#!/usr/bin/env bash
# Expected: training a tokenizer twice on the same texts in the same order gives the same tokenizer.
# Happens: with BpeTrainer it does. WordPieceTrainer gives tokens other ids each time, and now and then a token is another one, within
#   one program too, and there is no seed: a model trained with the first tokenizer reads nonsense from the second. UnigramTrainer's
#   ids differ too. With limit_alphabet BpeTrainer takes any of the letters that are equally frequent.
# Version: tokenizers 0.23.3.
# Seen (trained 4 times; vocabularies that differ): BPE 1, WordPiece 4, Unigram 4, BPE with limit_alphabet 4
. "$(dirname "$0")/_environment.sh"
packages tokenizers==0.23.3
python - <<'PY'
import argparse
import inspect
import json
import subprocess

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

texts = [line for module in (argparse, subprocess) for line in inspect.getsource(module).splitlines()]


def vocabulary(model, trainer, texts=texts, size=500, **options):
    tokenizer = Tokenizer(model())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainer(vocab_size=size, show_progress=False, **options))
    return tokenizer.get_vocab()


ways = {
    "BPE": lambda: vocabulary(models.BPE, trainers.BpeTrainer),
    "WordPiece": lambda: vocabulary(models.WordPiece, trainers.WordPieceTrainer),
    "Unigram": lambda: vocabulary(models.Unigram, trainers.UnigramTrainer),
    "limit_alphabet": lambda: vocabulary(
        models.BPE, trainers.BpeTrainer, ["abcdefghijklmnopqrstuvwxyz"], 20, limit_alphabet=10
    ),
}
trained = {name: [train() for _ in range(4)] for name, train in ways.items()}
for name, four in trained.items():
    others = [len(set(one) ^ set(four[0])) for one in four[1:]]
    moved = [sum(one.get(token) != number for token, number in four[0].items()) for one in four[1:]]
    print(f"{name}: of {len(four[0])} tokens, the next three times other tokens {others}, other ids {moved}")
different = {name: len({json.dumps(one, sort_keys=True) for one in four}) for name, four in trained.items()}
print("vocabularies of four:", different)
assert different.pop("BPE") == 1
assert all(count > 1 for count in different.values()), "trainers give the same ids each time now"
PY
