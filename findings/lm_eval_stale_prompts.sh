#!/usr/bin/env bash
# Expected: cache_requests=True (--cache_requests true) builds the prompts anew when the task's prompt has changed.
# Happens: the cache knows a task's name, the number of examples and the tokenizer's name. After an edit of the prompt (or
#   of the local data) the old prompts are sent to the model and scored, without a warning.
# Version: lm-eval 0.4.13.
# Seen: prompt before the edit 'q0', after it 'q0' (it should be 'Question: q0')
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13
export LM_HARNESS_CACHE_PATH=$WORK/requests
python - 2>/dev/null <<'PY'
import json

import lm_eval
from lm_eval.api.model import LM

with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps({"question": f"q{row}", "choices": ["a", "b"], "label": 0}) + "\n" for row in range(4))


class Listener(LM):
    """Keeps what it is asked."""

    tokenizer_name = "none"

    def loglikelihood(self, requests):
        self.prompts = [request.args[0] for request in requests]
        return [(0.0, False)] * len(requests)

    loglikelihood_rolling = generate_until = None


def first_prompt(prompt, **options):
    task = {
        "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": prompt, "doc_to_choice": "choices", "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    model = Listener()
    lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=False, **options)
    return model.prompts[0]


before = first_prompt("{{question}}", cache_requests=True)
after = first_prompt("Question: {{question}}", cache_requests=True)
fresh = first_prompt("Question: {{question}}")
print(f"before the edit {before!r}, after it {after!r}, without the cache {fresh!r}")
assert before == "q0" and fresh == "Question: q0"
assert after == before, "the cache notices a changed prompt now"
PY
