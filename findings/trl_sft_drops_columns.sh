#!/usr/bin/env bash
# Expected: with remove_unused_columns=False a column that the model's forward names (weights, one a token) reaches the collator's batch, or an
#   error says that it does not; max_length cuts it as it cuts input_ids.
# Happens: SFTTrainer's collator passes on input_ids and labels alone, without a word: the model trains unweighted. And max_length cuts
#   input_ids and labels only, so that a collator of one's own gets rows of ids and weights of unequal length.
# Version: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# Seen: row of 4 ids and 6 weights; batch: attention_mask, input_ids, labels
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 trl==1.16.0
python - 2>/dev/null <<'PY'
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


class Weighted(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, token_weights=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)


vocabulary = {f"t{i}": i for i in range(16)} | {"<eos>": 16, "<pad>": 17}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), eos_token="<eos>", pad_token="<pad>"
)
config = LlamaConfig(vocab_size=18, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
ids = [1, 2, 3, 4, 5, 6]
rows = Dataset.from_list([{"input_ids": ids, "labels": ids, "token_weights": [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]}] * 4)
arguments = SFTConfig(
    "out", max_length=4, remove_unused_columns=False, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True
)
trainer = SFTTrainer(model=Weighted(config), args=arguments, train_dataset=rows, processing_class=tokenizer)
row, batch = trainer.train_dataset[0], next(iter(trainer.get_train_dataloader()))
print("row:", {name: len(values) for name, values in row.items()}, "batch:", *sorted(batch))
assert (len(row["input_ids"]), len(row["token_weights"])) == (4, 6), "all columns are cut now"
assert sorted(batch) == ["attention_mask", "input_ids", "labels"], "the column reaches the batch now"
PY
