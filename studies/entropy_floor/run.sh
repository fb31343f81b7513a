#!/usr/bin/env bash
# The whole study, from the root of a checkout. More arguments go to every training: `run.sh --max_steps 20` tries it.
set -euo pipefail
python studies/entropy_floor/source.py runs/floor
eem data tokenizer --data asset:quickstart/train.jsonl.gz --vocab-size 258 --output runs/floor/bytes
for n in 1 2 3 4 6; do
    eem train --config studies/entropy_floor/code-$n.yaml "$@"
done
eem train --config studies/entropy_floor/code-2.yaml --max_steps 3000 --output_dir runs/floor/code-2-twice "$@"
eem evaluate entropy-floor runs/floor/code-{1,2,3,4,6} --known 1.4594 --batch-size 256 --output runs/floor/record
