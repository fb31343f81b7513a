#!/usr/bin/env bash
# Expected: a generated answer that a metric of one's own gives 0.4 counts as 0.4, and with a list of right answers as the best of them: a list
#   with the same single answer changes nothing.
# Happens: where the answers of a document are a list, every score above 0 becomes 1.0. An F1 of 0.4, or of 0.01, is reported as 1.0; a metric
#   such as a distance, where 0 is best, turns round. Nothing is printed.
# Version: lm-eval 0.4.13, datasets 5.2.0.
# Seen: F1 of "the red house" for the answer "the cat": 0.4; for the list ["the cat"]: 1.0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 lm-eval==0.4.13 datasets==5.2.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import datasets
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask


class Answers(LM):
    """A model that always answers the same."""

    def generate_until(self, requests):
        return ["the red house"] * len(requests)

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def word_f1(references, predictions, **kwargs):
    right, given = references[0].split(), predictions[0].split()
    return 2 * len(set(right) & set(given)) / (len(right) + len(given))


def score(answer):
    rows = datasets.Dataset.from_dict({"question": ["q"] * 4, "answer": [answer] * 4})
    task = ConfigurableTask(
        config={
            "task": "words", "custom_dataset": lambda **kwargs: {"test": rows}, "test_split": "test",
            "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "answer",
            "metric_list": [{"metric": word_f1, "aggregation": "mean", "higher_is_better": True}],
            "generation_kwargs": {"until": ["\n"]},
        }
    )  # fmt: skip
    results = evaluate(Answers(), {"words": task}, bootstrap_iters=0)["results"]["words"]
    return results["word_f1,none"]


single, listed = score("the cat"), score(["the cat"])
print("F1 for an answer:", single, "for a list with it:", listed)
assert abs(single - 0.4) < 1e-9 and listed == 1.0, "partial credit stays partial now"
PY
