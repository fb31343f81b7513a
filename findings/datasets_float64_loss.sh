#!/usr/bin/env bash
# Expected: with_format("torch") or "numpy" gives a float64 column as float64 numbers, an int32 column as int32.
# Happens: floats come out as float32 (2^24 + 1 becomes 2^24, a sum of surprisals loses digits), integers as int64,
#   although the column's type says float64; pandas and arrow keep it.
# Version: datasets 5.2.0.
# Seen: torch torch.float32 16777216.0, numpy float32 16777216.0, pandas float64 16777217.0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 datasets==5.2.0
python - <<'PY'
import datasets
import torch

data = datasets.Dataset.from_dict({"x": [float(2**24 + 1)]})
seen = {name: data.with_format(name)[:]["x"] for name in ("torch", "numpy", "pandas")}
print(data.features["x"].dtype, {name: (str(column.dtype), float(column[0])) for name, column in seen.items()})
assert data.features["x"].dtype == "float64" and seen["pandas"][0] == 2**24 + 1
assert seen["torch"].dtype == torch.float32 and seen["torch"][0] == seen["numpy"][0] == 2**24, "float64 is kept now"
PY
