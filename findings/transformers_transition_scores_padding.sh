#!/usr/bin/env bash
# Expected: compute_transition_scores of a greedy or sampled batch gives 0 for the padding behind a row's end, as it does for beams, so that a
#   row's sum is the log-probability of its text and does not depend on the rows beside it.
# Happens: the padding is scored like text: with the model's probability of the padding token after the end. The sum of a row that ended early
#   grows with the length of the longest row of the batch.
# Version: transformers 5.23.0, torch 2.13.0.
# Seen: a row that ends at once, alone [-0.62] with the sum -0.62; beside a row of 8 tokens
#   [-0.62, -4.36, -1.92, -1.91, -1.91, -1.9, -1.9, -1.91] with the sum -16.43; with 2 beams [-0.62, 0, 0, 0, 0, 0, 0, 0]
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
ids = {"bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}
model = LlamaForCausalLM(LlamaConfig(**sizes, **ids, initializer_range=0.5)).eval()


def scores(prompts, **how):
    out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=8, do_sample=False,
        return_dict_in_generate=True, output_scores=True, **how,
    )  # fmt: skip
    beams = out.beam_indices if how else None
    return out.sequences.tolist(), model.compute_transition_scores(out.sequences, out.scores, beams, normalize_logits=True)


ends, runs_on = [1, 6], [1, 3]
alone, alone_scores = scores(torch.tensor([ends]))
batch, batch_scores = scores(torch.tensor([ends, runs_on]))
print("alone:", alone[0], "sum", round(alone_scores[0].sum().item(), 2), "in a batch:", batch[0],
      "sum", round(batch_scores[0].sum().item(), 2), [round(x, 2) for x in batch_scores[0].tolist()])  # fmt: skip
length = len(alone[0]) - 2
assert alone[0][-1] == 5 and batch[0][: len(alone[0])] == alone[0] and set(batch[0][len(alone[0]) :]) == {0}
assert torch.allclose(batch_scores[0, :length], alone_scores[0], atol=1e-4)
assert (batch_scores[0, length:] < -0.1).all(), "padding has no score now"
_, beam_scores = scores(torch.tensor([ends, runs_on]), num_beams=2)
print("beams:", [round(x, 2) for x in beam_scores[0].tolist()])
PY
