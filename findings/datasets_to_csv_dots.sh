#!/usr/bin/env bash
# Expected: Dataset.to_csv writes lists whole, or raises because CSV has none.
# Happens: a list is written as NumPy prints it: of more than 1,000 numbers the first and last three, with "..." between them, and 8
#   digits of each. Rows of tokens or of values a token are lost, and from_csv gives back the text without an error. No warning.
# Version: datasets 5.2.0, pandas 3.1.1, numpy 2.4.6.
# Seen: input_ids "[   0    1    2 ... 1021 1022 1023]", value "[0.33333333 0.33333333 0.33333333 ... 0.33333333 …]"
. "$(dirname "$0")/_environment.sh"
packages datasets==5.2.0 pandas==3.1.1 numpy==2.4.6
python - <<'PY'
from datasets import Dataset

rows = Dataset.from_dict({"input_ids": [list(range(1024))], "value": [[1 / 3] * 1024]})
rows.to_csv("rows.csv")
read = Dataset.from_csv("rows.csv")[0]
print({name: text.replace("\n", "") for name, text in read.items()})
assert "..." in read["input_ids"] and "..." in read["value"] and "0.33333333 " in read["value"], "lists are written whole now"
PY
