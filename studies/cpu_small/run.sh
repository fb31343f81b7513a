#!/usr/bin/env bash
# The whole study, from the root of a checkout. More arguments go to every training: `run.sh --max_steps 20` tries it.
set -euo pipefail
export OMP_NUM_THREADS=1
for kind in mixer transformer; do
    for model in eem causal; do
        eem train --config configs/cpu-small/$model-$kind.yaml --output_dir runs/$model-$kind "$@"
    done
    eem evaluate bits --model runs/eem-$kind --baseline runs/causal-$kind \
        --data asset:quickstart/validation.jsonl.gz --output runs/bits-$kind
done
