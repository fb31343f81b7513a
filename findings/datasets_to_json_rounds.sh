#!/usr/bin/env bash
# Expected: Dataset.to_json writes the numbers that are in the data set, as to_csv and to_parquet do.
# Happens: floats are cut to 10 places after the point: 1e-12 becomes 0.0, a small loss or probability keeps a few digits. NaN becomes
#   null, which comes back as None. No warning. to_json(double_precision=15) keeps 15 digits.
# Version: datasets 5.2.0, pandas 3.1.1.
# Seen: 1e-12 comes back as 0.0, 1.2345678901234e-07 as 1.235e-07, 1/3 as 0.3333333333, [1.0, nan] as [1.0, None]; parquet: as written
. "$(dirname "$0")/_environment.sh"
packages datasets==5.2.0 pandas==3.1.1
python - <<'PY'
from datasets import Dataset

numbers = [1e-12, 1.2345678901234e-07, 1 / 3]
rows = Dataset.from_dict({"number": numbers, "values": [[1.0, float("nan")]] * 3})
rows.to_json("rows.jsonl")
rows.to_parquet("rows.parquet")
read = {kind: getattr(Dataset, f"from_{kind}")(f"rows.{end}") for kind, end in (("json", "jsonl"), ("parquet", "parquet"))}
print("written", numbers, "read", {kind: made["number"][:] for kind, made in read.items()}, read["json"]["values"][0])
assert read["parquet"]["number"][:] == numbers
assert read["json"]["number"][:] == [0.0, 1.235e-07, 0.3333333333], "JSON keeps all digits now"
assert read["json"]["values"][0] == [1.0, None]
PY
