#!/usr/bin/env bash
# Expected: word_perplexity divides by the number of a text's words.
# Happens: it divides by the number of pieces between white space, and empty pieces count: a space or a line break at the beginning
#   or at the end is a word more. Of short texts (one sentence a row) the word perplexity is then far too low.
# Version: lm-eval 0.4.13.
# Seen: words of "one two three four" 4, with a line break after it 5, with one before it too 6
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm-eval==0.4.13
python - 2>/dev/null <<'PY'
import json
import math

import lm_eval
from lm_eval.api.model import LM


class Model(LM):
    """Gives every text the likelihood exp(-20)."""

    def loglikelihood_rolling(self, requests):
        return [-20.0] * len(requests)

    loglikelihood = generate_until = None


task = {
    "task": "toy", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "",
    "doc_to_target": "{{text}}", "metric_list": [{"metric": "word_perplexity"}],
}
words, text = [], "one two three four"
for number, row in enumerate((text, f"{text}\n", f"\n{text}\n")):
    with open(f"{number}.jsonl", "w") as file:
        file.write(json.dumps({"text": row}) + "\n")
    rows = {"dataset_kwargs": {"data_files": {"test": f"{number}.jsonl"}}}
    results = lm_eval.simple_evaluate(model=Model(), tasks=[task | rows], bootstrap_iters=0, log_samples=False)
    words.append(round(20 / math.log(results["results"]["toy"]["word_perplexity,none"])))
print("words that the likelihood is divided by:", words)
assert words == [4, 5, 6], "words are counted otherwise now"
PY
