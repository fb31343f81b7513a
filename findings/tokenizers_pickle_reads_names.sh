#!/usr/bin/env bash
# Expected: a tokenizer that was pickled, or copied by copy.deepcopy, encodes as the one it was made from; worker processes (datasets,
#   DataLoader, multiprocessing) get theirs so.
# Happens: encode_special_tokens, which says that the name of a special token in a text is text, is not in the tokenizer's JSON, and a
#   pickle is that JSON. The copy reads the name as the special token: a text that mentions "<|endoftext|>" ends there for a model, and
#   decoded without special tokens it has lost the word. Padding and truncation, set in the same way, are kept. No warning.
# Version: tokenizers 0.23.3.
# Seen: ids of "a<|end|>" [1, 3, 3, 3, 4, 5, 3]; of a deepcopy, a pickle and a copy by to_str [1, 0], with the flag False; truncation 7 in all
. "$(dirname "$0")/_environment.sh"
packages tokenizers==0.23.3
python - <<'PY'
import copy
import pickle

from tokenizers import Tokenizer, models, pre_tokenizers

words = {"<|end|>": 0, "a": 1, "<|": 2, "e": 3, "n": 4, "d": 5, "|>": 6}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="e"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
tokenizer.add_special_tokens(["<|end|>"])
tokenizer.encode_special_tokens = True
tokenizer.enable_truncation(7)


def ids(one):
    return one.encode("a<|end|>").ids


copies = [copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer)), Tokenizer.from_str(tokenizer.to_str())]
print(ids(tokenizer), [ids(one) for one in copies], [one.encode_special_tokens for one in copies])
print("truncation:", [one.truncation["max_length"] for one in copies])
assert len(ids(tokenizer)) > 2, "the tokenizer itself reads the name as a special token now"
assert [ids(one) for one in copies] == [[1, 0]] * 3, "copies keep the flag now"
assert [one.truncation["max_length"] for one in copies] == [7] * 3
PY
