#!/usr/bin/env bash
# Theorem 1 on text, whole: the documents, the teachers, every student; four hours of one core.
#   bash studies/losses_on_text/theorem1_text.sh KEPT HELD_OUT OTHER     from the root of a checkout
# KEPT is what default_codec/drop_overlaps.py leaves of the training text, HELD_OUT a folder with
# general_validation.parquet and math_validation.parquet, OTHER a causal model with a tokenizer of its own.
set -euo pipefail
here=studies/losses_on_text
python $here/theorem1_text.py documents --train "$1" --output runs/documents \
    --held-out "$2/general_validation.parquet" --held-out "$2/math_validation.parquet"
eem train --config $here/llama.yaml --output_dir runs/llama --bf16 true
eem train --config asset:configs/speaking.yaml --train_files runs/documents/teacher.jsonl --output_dir runs/eem \
    --validation_files runs/documents/validation.jsonl --random_prefix_probability 0.5 --bf16 true
python $here/theorem1_text.py run --documents runs/documents --larger runs/llama --other "$3" --eem runs/eem \
    --output runs/theorem1-text --records $here
