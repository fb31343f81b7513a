#!/usr/bin/env bash
# Expected: take(n) and skip(n) of one shuffled stream divide it: what was held out is never trained on.
# Happens: only in the first epoch. set_epoch, which trainers call for each epoch, shuffles anew, and skip(n) then leaves out the n
#   rows that come first NOW: the held-out rows come into training. No warning. take and skip before shuffle are safe.
# Version: datasets 5.2.0.
# Seen: held-out rows of 5 in training, epochs 0, 1, 2: shuffled before 0, 3, 4; shuffled after 0, 0, 0
. "$(dirname "$0")/_environment.sh"
packages datasets==5.2.0
python - <<'PY'
from datasets import Dataset

rows = Dataset.from_dict({"number": list(range(20))}).to_iterable_dataset()
shuffled = rows.shuffle(seed=0, buffer_size=1000)
ways = {
    "shuffled before": (shuffled.take(5), shuffled.skip(5)),
    "shuffled after": (rows.take(5), rows.skip(5).shuffle(seed=0, buffer_size=1000)),
}
leaks = {}
for name, (held_out, train) in ways.items():
    held_out = {row["number"] for row in held_out}
    leaks[name] = []
    for epoch in range(3):
        train.set_epoch(epoch)
        leaks[name].append(len(held_out & {row["number"] for row in train}))
print("held-out rows of 5 in training, by epoch:", leaks)
assert leaks["shuffled before"][0] == 0 and leaks["shuffled after"] == [0, 0, 0]
assert all(leaks["shuffled before"][1:]), "held-out rows stay out now"
PY
