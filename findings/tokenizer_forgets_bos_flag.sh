#!/usr/bin/env bash
# Expected: a tokenizer loaded with add_bos_token=True, saved and loaded again says add_bos_token=True; add_eos_token=True then adds
#   EOS and leaves BOS; and "add_bos_token" in tokenizer_config.json is obeyed.
# Happens: saving drops both flags; that BOS is added is kept in tokenizer.json alone. The loaded tokenizer adds BOS and says that it
#   does not; add_eos_token=True takes the other flag for False and removes BOS. Flags written in tokenizer_config.json are ignored
#   where a tokenizer.json lies beside it. No warning.
# Version: transformers 5.23.0, tokenizers 0.23.3.
# Seen: ids of "a" (BOS 0, EOS 1): asked for BOS [0, 3]; saved and loaded [0, 3], add_bos_token False; with add_eos_token=True [3, 1];
#   with "add_bos_token": true in the config of a tokenizer without BOS [3], with false in that of one with BOS [0, 3]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
python - 2>/dev/null <<'PY'
import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

Path("raw").mkdir()
Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, [], unk_token="<unk>")).save("raw/tokenizer.json")
config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
Path("raw/tokenizer_config.json").write_text(json.dumps(config))


def ids(folder, **flags):
    return AutoTokenizer.from_pretrained(folder, **flags)("a")["input_ids"]


def ids_with(folder, flag):
    path = Path(folder, "tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": flag}))
    return ids(folder)


AutoTokenizer.from_pretrained("raw", add_bos_token=True).save_pretrained("saved")
seen = {
    "asked": ids("raw", add_bos_token=True),
    "saved": ids("saved"),
    "flag": AutoTokenizer.from_pretrained("saved").add_bos_token,
    "with EOS": ids("saved", add_eos_token=True),
    "true in the config": ids_with("raw", True),
    "false in the config": ids_with("saved", False),
}
print("ids of 'a':", seen)
assert seen == {
    "asked": [0, 3], "saved": [0, 3], "flag": False, "with EOS": [3, 1], "true in the config": [3], "false in the config": [0, 3]
}, "the flags are kept or read otherwise now"
PY
