#!/usr/bin/env bash
# Expected: limit is a share below or at 1.0 (as a float) and a number of documents above: 0.5 is half, 0.99 nearly all,
#   1.0 all.
# Happens: limit=1.0 evaluates ONE document and reports its score as the task's.
# Version: lm-eval 0.4.13.
# Seen: documents of 10: limit 0.5: 5, 0.99: 10, 1.0: 1
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13
python - 2>/dev/null <<'PY'
import json

import lm_eval
from lm_eval.api.model import LM

with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"choices": ["a", "b"], "label": 0}) + "\n" for row in range(10))
task = {
    "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "Q", "doc_to_choice": "choices", "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


class Model(LM):
    """All answers alike."""

    def loglikelihood(self, requests):
        return [(0.0, False)] * len(requests)

    loglikelihood_rolling = generate_until = None


counts = {}
for limit in (0.5, 0.99, 1.0):
    results = lm_eval.simple_evaluate(model=Model(), tasks=[task], limit=limit, bootstrap_iters=0, log_samples=False)
    counts[limit] = results["n-samples"]["toy"]["effective"]
print("documents of 10 by limit:", counts)
assert counts == {0.5: 5, 0.99: 10, 1.0: 1}, "limit is read otherwise now"
PY
