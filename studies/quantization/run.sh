#!/usr/bin/env bash
# The whole study, from the root of a checkout. More arguments go to every training: `run.sh --max_steps 20` tries it.
set -euo pipefail
eem data tokenizer --data asset:quickstart/train.jsonl.gz --vocab-size 258 --output runs/bytes
for seed in 0 1; do
    for model in no-noise noise-at-the-code noise-before-down; do
        eem train --config studies/quantization/$model.yaml --seed $seed --output_dir runs/seed-$seed/$model "$@"
    done
    eem evaluate quantization --model runs/seed-$seed/{no-noise,noise-at-the-code,noise-before-down} \
        --data asset:quickstart/validation.jsonl.gz --batch-size 256 --sweep-rows 32 --output runs/seed-$seed/record
done
