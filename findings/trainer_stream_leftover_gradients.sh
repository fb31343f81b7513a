#!/usr/bin/env bash
# Expected: with gradient accumulation, the batches that are left over at the end of an epoch make a smaller last step of that epoch, whether the
#   rows come from a list or from a stream (IterableDataset) of the same rows. No step's gradient holds another step's.
# Happens: from a stream, the batches left over make no step. Their gradient stays on the weights and is added to that of the next epoch's first
#   step, whose loss was divided as if it stood alone: nearly twice as large here. The log counts both as one step's loss. No warning.
# Version: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
# Seen: 5 rows, batches of 1, 2 accumulated: gradient norms of steps 1 to 3 of the list's epoch 1.053, 1.258, 1.936; from the stream
#   1.053, 1.258, then 2.152 for rows 1 and 2 again, which is the sum of row 5's and theirs; train_loss of the same rows 2.78 and 3.71
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
python - 2>/dev/null <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
torch.manual_seed(0)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 16, (5, 6))]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows)


class Watch(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))


def train(data):
    """Six steps at learning rate 0: the gradients of each step, and the loss that is reported."""
    torch.manual_seed(0)
    watch = Watch()
    arguments = TrainingArguments(
        output_dir="run", max_steps=6, gradient_accumulation_steps=2, per_device_train_batch_size=1, learning_rate=0.0,
        max_grad_norm=0, train_sampling_strategy="sequential", save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**sizes)), arguments, train_dataset=data, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    return watch.gradients, trainer.train().training_loss


listed, listed_loss = train(rows)
streamed, streamed_loss = train(Stream())
for name, gradients, loss in (("list", listed, listed_loss), ("stream", streamed, streamed_loss)):
    print(name, "norms:", [round(gradient.norm().item(), 3) for gradient in gradients], "train_loss:", round(loss, 2))
assert torch.allclose(streamed[0], listed[0], atol=1e-5) and torch.allclose(streamed[1], listed[1], atol=1e-5)
assert torch.allclose(listed[3], listed[0], atol=1e-5), "the list's second epoch begins as its first one"
leaked = listed[2] + listed[0]  # row 5, and rows 1 and 2
assert torch.allclose(streamed[2], leaked, atol=1e-5), "a stream's last batches have a step of their own now"
assert streamed_loss > 1.2 * listed_loss
PY
