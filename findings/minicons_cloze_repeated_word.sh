#!/usr/bin/env bash
# Expected: MaskedLMScorer.cloze gives for each pair of a sentence and a word the probability of that word, masked in that sentence, in a batch as
#   one by one.
# Happens: a word that stands twice in its sentence puts two places into the list of places. From the next sentence on, each is masked at a place
#   of the sentence before, and the probability is that of whatever word stands there. As many numbers come back as pairs. No warning.
# Version: minicons 0.3.39, transformers 5.23.0, torch 2.13.0.
# Seen: "the" in "the dog saw the cat .", then "man" in "old man saw a bird .": [-11.79, -10.83]; one by one -11.79 and -4.24;
#   the second number is that of "a", which stands where the first sentence has its second "the"
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 minicons==0.3.39
python - 2>/dev/null <<'PY'
import torch
from minicons import scorer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
words = [*names.values(), *"the dog saw a cat bird . old man".split()]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
model = BertForMaskedLM(BertConfig(vocab_size=len(words), initializer_range=1.0, **sizes)).eval()
masked = scorer.MaskedLMScorer(model, "cpu", tokenizer=tokenizer)

pairs = [("the dog saw the cat .", "the"), ("old man saw a bird .", "man")]
batch, alone = masked.cloze(pairs), [masked.cloze([pair])[0] for pair in pairs]
other = masked.cloze([("old man saw a bird .", "a")])[0]
print("batch:", [round(x, 2) for x in batch], "one by one:", [round(x, 2) for x in alone], "of the other word:", round(other, 2))
assert abs(batch[0] - alone[0]) < 1e-4
assert abs(batch[1] - alone[1]) > 0.1 and abs(batch[1] - other) < 1e-4, "each sentence has its own place now"
PY
