#!/usr/bin/env bash
# Expected: Dataset.map runs again when the code it calls has changed; its cache is keyed on a hash of the function.
# Happens: functions of an IMPORTED module are hashed by name only. Edit the helper module, run the script again, and map
#   gives yesterday's rows from its cache, without a word. (Only the main script's own functions are hashed by their code.)
# Version: datasets 5.2.0, dill 0.4.1.
# Seen: [2, 3] before the edit, [2, 3] after it; the new code gives [1001, 1002]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 datasets==5.2.0
export PYTHONDONTWRITEBYTECODE=1
cat > program.py <<'PY'
import cleaning
import datasets

data = datasets.load_from_disk("rows")
print(data.map(lambda row: {"y": cleaning.clean(row["x"])})["y"][:])
PY
python -c 'import datasets; datasets.Dataset.from_dict({"x": [1, 2]}).save_to_disk("rows")'
printf 'def clean(x):\n    return x + 1\n' > cleaning.py
before=$(python program.py)
printf 'def clean(x):\n    return x + 1000\n' > cleaning.py
after=$(python program.py)
rm -r rows/cache-*
fresh=$(python program.py)
echo "before $before, after the edit $after, without the cache $fresh"
[ "$before" = "[2, 3]" ] && [ "$after" = "[2, 3]" ] && [ "$fresh" = "[1001, 1002]" ]
