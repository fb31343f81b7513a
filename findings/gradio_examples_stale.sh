#!/usr/bin/env bash
# Expected: gr.Examples(cache_examples=True) shows what the function gives for the examples when the app starts: after the function or the
#   model behind it was changed and the app started again, the new results.
# Happens: results lie in .gradio/cached_examples/N of the working folder, N being a component's number. What is there is shown: old results of
#   a changed function, and those of ANOTHER app that was started in the folder. Nothing is printed. Delete the folder.
# Version: gradio 6.31.0.
# Seen: an app whose function answers "by the second model" shows "by the first model"
. "$(dirname "$0")/_environment.sh"
packages gradio==6.31.0
export GRADIO_ANALYTICS_ENABLED=False
cat > app.py <<'PY'
import sys

import gradio as gr

model = sys.argv[1]
with gr.Blocks(analytics_enabled=False):
    question, answer = gr.Textbox(), gr.Textbox()
    examples = gr.Examples([["one"], ["two"]], question, answer, fn=lambda text: f"{text}: by the {model} model", cache_examples=True)
shown = examples.load_from_cache(0)
shown = shown[0] if isinstance(shown, (list, tuple)) else shown
print(f"the {model} model's app shows {shown!r}")
assert shown == "one: by the first model", "results are made anew now"
PY
python app.py first
python app.py second
