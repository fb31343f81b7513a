#!/usr/bin/env bash
# Expected: rows that come tokenized and padded, with the attention_mask that every tokenizer returns beside the ids, train on their text. The
#   tokenizer's own output is what SFTTrainer's documentation calls a tokenized data set.
# Happens: the mask is thrown away and replaced by ones, and labels are made of all ids: padding is seen, and learned. A row of 3 tokens padded
#   to 6 counts 6 tokens. transformers' DataCollatorForLanguageModeling gives padding no label.
# Version: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# Seen: row [1, 2, 3, 17, 17, 17] with mask [1, 1, 1, 0, 0, 0]: labels [1, 2, 3, 17, 17, 17], mask [1, 1, 1, 1, 1, 1]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 trl==1.16.0
python - 2>/dev/null <<'PY'
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

vocabulary = {f"t{i}": i for i in range(16)} | {"<eos>": 16, "<pad>": 17}
backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
config = LlamaConfig(vocab_size=18, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
encoded = tokenizer(["t1 t2 t3"] * 4, padding="max_length", max_length=6)
rows = Dataset.from_dict({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
arguments = SFTConfig("out", max_steps=1, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True)
trainer = SFTTrainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=rows, processing_class=tokenizer)
batch = next(iter(trainer.get_train_dataloader()))
labels, mask = batch["labels"][0].tolist(), batch["attention_mask"][0].tolist()
usual = DataCollatorForLanguageModeling(tokenizer, mlm=False)([rows[0]])["labels"][0].tolist()
print("row", rows[0], "labels", labels, "mask", mask, "labels of transformers' collator", usual)
assert rows[0] == {"input_ids": [1, 2, 3, 17, 17, 17], "attention_mask": [1, 1, 1, 0, 0, 0]}
assert usual == [1, 2, 3, -100, -100, -100]
assert labels == [1, 2, 3, 17, 17, 17] and mask == [1] * 6, "padding is left out now"
PY
