#!/usr/bin/env bash
# Expected: SFTTrainer minimises the loss that the model returns for its labels, as Trainer does.
# Happens: SFTTrainer replaces the model's forward: it calls model.base_model and multiplies by get_output_embeddings().weight itself. What a
#   model of one's own does in its forward (a loss term, a scale or a mask of the logits) is never run, in training or in evaluation.
#   No warning. Only settings by transformers' own names in the config (logit_scale, final_logit_softcapping, ...) are honoured.
# Version: trl 1.16.0, transformers 5.23.0, torch 2.13.0.
# Seen: eval_loss of a model whose logits are 0 and whose loss is log(18) + 100 = 102.9: Trainer 102.9, SFTTrainer 2.898; calls 4 and 0
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0 trl==1.16.0
python - 2>/dev/null <<'PY'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer
from trl import SFTConfig, SFTTrainer

vocabulary = {f"t{i}": i for i in range(16)} | {"<eos>": 16, "<pad>": 17}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), eos_token="<eos>", pad_token="<pad>"
)
calls = 0


class Regularized(LlamaForCausalLM):
    """Flat logits, and a term of 100 in its loss."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        global calls
        calls += 1
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        outputs.logits = 0 * outputs.logits
        outputs.loss = self.loss_function(outputs.logits, labels, vocab_size=18) + 100 if labels is not None else None
        return outputs


torch.manual_seed(0)
config = LlamaConfig(vocab_size=18, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
model = Regularized(config)
rows = Dataset.from_list([{"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]}] * 4)
arguments = SFTConfig("out", per_device_eval_batch_size=1, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True)
seen = {}
for kind, more in ((Trainer, {}), (SFTTrainer, {"train_dataset": rows, "processing_class": tokenizer})):
    calls = 0
    seen[kind.__name__] = (kind(model=model, args=arguments, eval_dataset=rows, **more).evaluate()["eval_loss"], calls)
print("eval_loss and calls of the model's forward:", seen)
assert abs(seen["Trainer"][0] - 102.89) < 0.01 and seen["Trainer"][1] == 4
assert seen["SFTTrainer"][0] < 5 and seen["SFTTrainer"][1] == 0, "SFTTrainer runs the model's own forward now"
PY
