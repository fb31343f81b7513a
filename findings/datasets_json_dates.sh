#!/usr/bin/env bash
# Expected: a JSON string comes back as the same string, above all where features= says that it is one.
# Happens: load_dataset("json") turns a column whose strings all look like dates into datetime objects, and what was written is lost:
#   with "T" and "Z" or with a space, one day or its midnight. Features do not help: the string is then the date written anew. One
#   other string in the column, and all come back as they were; so it depends on the file.
# Version: datasets 5.2.0, pyarrow 26.0.1.
# Seen: "2024-01-31" and "2024-01-31T00:00:00Z" are datetime(2024, 1, 31, 0, 0), with features "2024-01-31 00:00:00"; beside "none"
#   they are as written
. "$(dirname "$0")/_environment.sh"
packages datasets==5.2.0 pyarrow==26.0.1
python - <<'PY'
import json
from datetime import datetime

from datasets import Features, Value, load_dataset


def read(*texts, **options):
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps({"answer": text}) + "\n" for text in texts)
    return load_dataset("json", data_files="rows.jsonl", split="train", **options)["answer"][:]


dates = "2024-01-31", "2024-01-31T00:00:00Z"
alone, with_features = read(*dates), read(*dates, features=Features({"answer": Value("string")}))
beside_text = read(*dates, "none")
print("alone:", alone, "features:", with_features, "beside another text:", beside_text)
assert beside_text == [*dates, "none"]
assert alone == [datetime(2024, 1, 31)] * 2 and with_features == ["2024-01-31 00:00:00"] * 2, "strings stay strings now"
PY
