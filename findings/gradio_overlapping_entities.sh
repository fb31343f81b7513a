#!/usr/bin/env bash
# Expected: gr.HighlightedText of {"text": ..., "entities": [...]} shows the text, each character once, or refuses entities that overlap.
# Happens: an entity that begins inside an earlier one is put behind it: its characters are shown twice. With one entity inside another the
#   rest of the outer one is shown twice too. No warning.
# Version: gradio 6.31.0.
# Seen: "abcdef" with 0-4 and 2-6: "abcdcdef"; with 0-6 and 2-4: "abcdefcdef"
. "$(dirname "$0")/_environment.sh"
packages gradio==6.31.0
export GRADIO_ANALYTICS_ENABLED=False
python - <<'PY'
import gradio as gr

component = gr.HighlightedText()


def shown(*entities):
    marked = [{"start": start, "end": end, "entity": name} for start, end, name in entities]
    sent = component.postprocess({"text": "abcdef", "entities": marked})
    return "".join(pair.token for pair in sent.root)


apart, overlapping, nested = shown((0, 2, "A"), (4, 6, "B")), shown((0, 4, "A"), (2, 6, "B")), shown((0, 6, "A"), (2, 4, "B"))
print("apart", apart, "overlapping", overlapping, "nested", nested)
assert apart == "abcdef"
assert overlapping == "abcdcdef" and nested == "abcdefcdef", "each character is shown once now"
PY
