#!/usr/bin/env bash
# Expected: Dataset.from_list keeps every key: a key that only later rows have becomes a column with None above it.
# Happens: the FIRST row decides the columns; what only later rows have is dropped silently. The same rows as a JSON lines
#   file keep it.
# Version: datasets 5.2.0.
# Seen: from_list {'x': [1, 2]}, from a file {'x': [1, 2], 'y': [None, 3]}
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 datasets==5.2.0
python - <<'PY'
import json

import datasets

rows = [{"x": 1}, {"x": 2, "y": 3}]
with open("rows.jsonl", "w") as file:
    file.write("\n".join(json.dumps(row) for row in rows))
listed = datasets.Dataset.from_list(rows)[:]
read = datasets.load_dataset("json", data_files="rows.jsonl", split="train")[:]
print("from_list", listed, "from a file", read)
assert read == {"x": [1, 2], "y": [None, 3]} and listed == {"x": [1, 2]}, "from_list keeps late columns now"
PY
