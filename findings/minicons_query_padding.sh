#!/usr/bin/env bash
# Expected: query(distribution, [["cat", "zebra"]]) of the next word's distribution gives the probability of each word: of "cat" the larger one of
#   its two spellings "cat" and " cat", of "zebra", which has one, that one.
# Happens: the words of a query are filled up with the padding token to the same number of spellings, and the largest probability is taken with it.
#   For "zebra" comes the probability of padding, where that is larger: of the end of text, which is the padding of models without one. The same
#   word asked for on its own has its own probability. Ranks are wrong too, and entropy(space=...) of masked models goes through the same. No warning.
# Version: minicons 0.3.39, transformers 5.23.0, torch 2.13.0.
# Seen: P(zebra) = 0.0102, P(end of text) = 0.0431: query of ["zebra"] 0.0102, of ["cat", "zebra"] 0.0431 for zebra
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 minicons==0.3.39
python - 2>/dev/null <<'PY'
import torch
from minicons import scorer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

spaced = ["\u0120" + word for word in "the old dog saw cat bird man zebra".split()]  # \u0120: byte-level BPE's space
words = ["<eos>", *spaced, "cat", "man", "bird"]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<eos>"))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>")
torch.manual_seed(4)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), initializer_range=0.5, **sizes)).eval()
causal = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)

distribution = causal.next_word_distribution(["the old dog saw the"])
end, zebra = distribution[0].exp()[[0, words.index("\u0120zebra")]].tolist()
(alone,), _ = causal.query(distribution, [["zebra"]])
(beside,), _ = causal.query(distribution, [["cat", "zebra"]])
print(f"P(zebra) {zebra:.4f} P(end of text) {end:.4f} asked for alone {alone[0]:.4f} beside cat {beside[1]:.4f}")
assert end > zebra and abs(alone[0] - zebra) < 1e-6
assert abs(beside[1] - end) < 1e-6, "a word has its own probability now"
PY
