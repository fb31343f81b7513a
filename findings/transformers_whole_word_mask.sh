#!/usr/bin/env bash
# Expected: DataCollatorForLanguageModeling(whole_word_mask=True) masks 15 % of the words of each row, whatever fast tokenizer made the rows.
#   tokenizer.word_ids() knows the words.
# Happens: a word is taken to end where the text has a gap between two tokens' offsets. A byte-level BPE whose post-processor does not trim
#   offsets (TemplateProcessing, or none) gives the space to the token behind it, and a Metaspace tokenizer does so too: there
#   are no gaps, and the whole row is one word. About 85 % of the rows are not masked at all, the others from end to end: [MASK] alone, from
#   which nothing can be learned. The share of masked tokens over all rows is the 15 % that was asked for. No warning.
# Version: transformers 5.23.0, tokenizers 0.23.3, torch 2.13.0.
# Seen: of 400 rows of 10 words, WordPiece: 85 without a mask, 0 masked whole; byte-level BPE: 347 without, 53 masked whole, 13 % of the tokens;
#   the same BPE with RobertaProcessing, which trims: 77 and 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
python - 2>/dev/null <<'PY'
import warnings

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

warnings.simplefilter("ignore")
names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
special = list(names.values())
text = "the old dog saw a small bird in the garden"
plain = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
trims = processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1), trim_offsets=True, add_prefix_space=False)


def word_pieces():
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    return Tokenizer(models.WordPiece(unk_token="[UNK]")), pre_tokenizers.Whitespace(), trainer


def byte_level():
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    return Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False), trainer


def masked(parts, post_processor):
    """Of 400 rows: how many have no mask, how many are masked whole; the share of masked tokens; words by word_ids()."""
    tokenizer, tokenizer.pre_tokenizer, trainer = parts
    tokenizer.train_from_iterator([text] * 5, trainer)
    tokenizer.post_processor = post_processor
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    row = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    words = len(set(row.word_ids()) - {None})
    collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, mlm_probability=0.15, seed=0)
    counts = (collator([dict(row) for _ in range(400)])["labels"] != -100).sum(1)
    tokens = len(row["input_ids"]) - 2
    return (counts == 0).sum().item(), (counts == tokens).sum().item(), round(counts.sum().item() / tokens / 400, 3), words


pieces, level, trimmed = masked(word_pieces(), plain), masked(byte_level(), plain), masked(byte_level(), trims)
print("no mask, masked whole, share, words: WordPiece", pieces, "byte-level", level, "byte-level, trimmed", trimmed)
assert pieces[3] == level[3] == trimmed[3] == 10
assert pieces[1] == 0 and pieces[0] < 150 and trimmed[1] == 0 and trimmed[0] < 150
assert level[0] + level[1] == 400 and level[1] > 0, "a byte-level row has several words now"
PY
