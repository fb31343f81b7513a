#!/usr/bin/env bash
# Expected: a model whose log-likelihoods are NaN (overflow in float16, a bad checkpoint) gets NaN or an error.
# Happens: argmax of NaN is the first answer, so accuracy is the share of questions whose answer stands first: a plausible
#   number. One NaN among the answers wins against all others.
# Version: lm-eval 0.4.13.
# Seen: accuracy 0.5 with all scores NaN, where 5 of 10 right answers stand first; no error
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13
python - 2>/dev/null <<'PY'
import json

import lm_eval
from lm_eval.api.model import LM

labels = [0, 1, 0, 2, 3, 0, 0, 1, 2, 0]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"choices": ["a", "b", "c", "d"], "label": label}) + "\n" for label in labels)
task = {
    "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "Q", "doc_to_choice": "choices", "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


class Broken(LM):
    """All its scores are NaN."""

    def loglikelihood(self, requests):
        return [(float("nan"), False)] * len(requests)

    loglikelihood_rolling = generate_until = None


results = lm_eval.simple_evaluate(model=Broken(), tasks=[task], bootstrap_iters=0, log_samples=False)
accuracy = results["results"]["toy"]["acc,none"]
print("accuracy of a model whose scores are all NaN:", accuracy)
assert accuracy == labels.count(0) / len(labels) == 0.5, "NaN is noticed now"
PY
