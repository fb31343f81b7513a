#!/usr/bin/env bash
# The whole study: two seeds, and noise; six hours of one core.
#   bash studies/over_training/run.sh TEXT     from the root of a checkout
# TEXT is a folder with general_train.parquet, math_train.parquet, train.jsonl, and the validation file of each.
# More arguments go to every training: `run.sh TEXT --max_steps 6 --save_steps 2` tries it.
set -euo pipefail
text=$1
shift
here=studies/over_training
held_out=("$text"/{general_validation.parquet,math_validation.parquet,validation.jsonl})
python studies/default_codec/drop_overlaps.py --train "$text"/{general_train.parquet,math_train.parquet,train.jsonl} \
    --held-out "${held_out[@]}" --output runs/kept.parquet --report runs/overlaps.json --calibration runs/calibration.jsonl
eem data prepare --tokenizer asset:tokenizer --data runs/kept.parquet --rows windows --max-length 128 --output runs/rows128
train() { eem train --config "$here/$1.yaml" --train_rows runs/rows128 "${@:2}"; }
measure() { python $here/over_training.py --prepared runs/rows128 --data "${held_out[@]}" --output runs "$@"; }
for seed in 0 1; do
    train eem --output_dir runs/eem-$seed --seed $seed "$@"
    train causal --output_dir runs/causal-$seed --seed $seed "$@"
    measure --eem runs/eem-$seed --causal runs/causal-$seed --name over-training-seed-$seed
done
train eem --output_dir runs/eem-noise --noise_scale 0.0625 "$@"
measure --eem runs/eem-noise --causal runs/causal-0 --name over-training-noise
