#!/usr/bin/env bash
# Expected: apply_chat_template(return_assistant_tokens_mask=True) marks the assistant's tokens that are left after truncation, from
#   whichever side truncation_side cuts.
# Happens: where it cuts from the left and the first answer is gone or only half there, nothing is marked, not even answers that are
#   whole: the loop over answers stops at the first one that is cut. A row trained on its answers alone then has no loss, and no
#   warning says so. Cut from the right all is well.
# Version: transformers 5.23.0, tokenizers 0.23.3.
# Seen (marked tokens of a chat with the answers "c d e" and "h i j", 18 tokens): uncut c d e h i j; cut to 9 from the right c d e;
#   cut to 9 from the left none, though its tokens are "user f g / assistant h i j /"; cut to 11 from the left, to "e / user ...", none
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
python - 2>/dev/null <<'PY'
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

template = (
    "{% for message in messages %}{{ message.role }} {% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{% endgeneration %}{% else %}{{ message.content }}{% endif %} / {% endfor %}"
)
chat = [
    {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"},
    {"role": "user", "content": "f g"}, {"role": "assistant", "content": "h i j"},
]
words = ["<unk>", "user", "assistant", "/", *"abcdefghij"]
backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
seen = {}
for side, length in (("right", None), ("right", 9), ("left", 9), ("left", 11)):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", truncation_side=side, chat_template=template)
    encoded = tokenizer.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, truncation=length is not None, max_length=length
    )
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    seen[side, length] = " ".join(token for token, marked in zip(tokens, encoded["assistant_masks"]) if marked)
    print(f"{side}, {length}: {' '.join(tokens)}; {len(tokens)} tokens, marked: {seen[side, length] or 'none'}")
assert "h i j" in " ".join(tokens)
assert seen["right", None] == "c d e h i j" and seen["right", 9] == "c d e"
assert seen["left", 9] == seen["left", 11] == "", "answers that are left are marked now"
PY
