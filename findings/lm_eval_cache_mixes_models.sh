#!/usr/bin/env bash
# Expected: simple_evaluate(use_cache=PATH) keeps each model's answers apart, or refuses another model's file.
# Happens: answers are keyed by the request alone. A second model with the same path is never asked; it gets the first
#   one's scores, without a warning. The same for a newer checkpoint of one model.
# Version: lm-eval 0.4.13.
# Seen: accuracy of model B alone 0.0; after model A with the same cache 1.0, requests that B answered: 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13
python - 2>/dev/null <<'PY'
import json

import lm_eval
from lm_eval.api.model import LM

with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"question": f"q{row}", "choices": ["a", "b"], "label": 0}) + "\n" for row in range(10))
task = {
    "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "choices", "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


class Always(LM):
    """Prefers one answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, 0

    def loglikelihood(self, requests):
        self.asked += len(requests)
        return [(float(self.answer in request.args[1]), False) for request in requests]

    loglikelihood_rolling = generate_until = None


def accuracy(model, **options):
    results = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=False, **options)
    return results["results"]["toy"]["acc,none"]


alone = accuracy(Always("b"))
first = accuracy(Always("a"), use_cache="answers")
second = Always("b")
shared = accuracy(second, use_cache="answers")
print(f"B alone {alone}; A {first}; B after A with the same cache {shared}, requests that B answered: {second.asked}")
assert alone == 0 and first == 1
assert shared == 1 and second.asked == 0, "the cache knows the model now"
PY
