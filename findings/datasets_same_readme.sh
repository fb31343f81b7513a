#!/usr/bin/env bash
# Expected: load_dataset(FOLDER) gives the rows that are in the folder.
# Happens: it keeps what it made under the folder's name and a hash of its README. A folder whose rows were written anew beside the
#   same README gives the OLD rows, and so does another folder of that name with that README. No warning. Without a README the files
#   count; streaming=True reads them.
# Version: datasets 5.2.0.
# Seen: with a README, rows written anew ['first'], another folder ['first'], streamed ['second']; without, ['second'] and ['second']
. "$(dirname "$0")/_environment.sh"
packages datasets==5.2.0
python - 2>/dev/null <<'PY'
import json
from pathlib import Path

from datasets import load_dataset


def rows(place, text, readme, **options):
    folder = Path(place) / "questions"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "test.jsonl").write_text(json.dumps({"text": text}) + "\n")
    if readme:
        (folder / "README.md").write_text(readme)
    return [row["text"] for row in load_dataset(str(folder), split="test", **options)]


card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test.jsonl\n---\n"
seen = {}
for name, readme in (("README", card), ("no README", "")):
    rows(f"{name}/1", "first", readme)
    seen[name] = {"anew": rows(f"{name}/1", "second", readme), "elsewhere": rows(f"{name}/2", "second", readme)}
seen["README"]["streamed"] = rows("README/1", "second", card, streaming=True)
print("rows of a folder that holds 'second':", seen)
assert seen == {
    "README": {"anew": ["first"], "elsewhere": ["first"], "streamed": ["second"]},
    "no README": {"anew": ["second"], "elsewhere": ["second"]},
}, "folders are told apart otherwise now"
PY
