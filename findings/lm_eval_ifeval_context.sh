#!/usr/bin/env bash
# Expected: a model with a context of 1,024 tokens is scored on a task that allows answers of up to 1,280: answers are cut at the
#   context, as prompts that are too long are.
# Happens: an AssertionError before the first answer. IFEval is such a task (max_gen_toks: 1280 in its file), so no model with a
#   context of 1,280 tokens or fewer can be scored on it, and the tasks scored before it are lost too.
# Version: lm-eval 0.4.13.
# Seen: contexts of 1024 and 1280 tokens AssertionError, 1300 scored
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 tokenizers==0.23.3 lm-eval==0.4.13
python - 2>/dev/null <<'PY'
import json
from importlib.resources import files

import lm_eval
import yaml
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

text = (files("lm_eval") / "tasks" / "ifeval" / "ifeval.yaml").read_text()
asked = [line.split(":")[1].strip() for line in text.splitlines() if "max_gen_toks" in line]
raw = Tokenizer(models.WordLevel({"<s>": 0, "Q": 1, "A": 2}, unk_token="<s>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<s>")
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
with open("rows.jsonl", "w") as file:
    file.write(json.dumps({"q": "Q", "a": "A"}) + "\n")
task = {
    "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
    "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 1280}, "metric_list": [{"metric": "exact_match"}],
}
seen = {}
for context in (1024, 1280, 1300):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, max_position_embeddings=context, eos_token_id=None, **sizes))
    try:
        lm_eval.simple_evaluate(model=HFLM(model, tokenizer=tokenizer, batch_size=1), tasks=[task], bootstrap_iters=0)
        seen[context] = "scored"
    except AssertionError as error:
        seen[context] = "AssertionError"
print(f"IFEval asks for {asked}; by context:", seen)
assert asked == ["1280"] and seen == {1024: "AssertionError", 1280: "AssertionError", 1300: "scored"}
PY
