#!/usr/bin/env bash
# Expected: Categorical(probs=p).log_prob(i) is log(p[i]): -27.6 for 1e-12, minus infinity for 0.
# Happens: probabilities are clamped to float32's epsilon first: no symbol costs more than 15.94 nats (23 bits), however
#   rare. With logits= the answer is right. A surprisal or code length from probs= is too short for rare tokens.
# Version: torch 2.13.0.
# Seen: log_prob of 1e-12: -15.942 (true -27.631); of 0: -15.942; from logits: -27.631
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 numpy==2.4.6
python - <<'PY'
import math

import torch
from torch.distributions import Categorical

rare = torch.tensor(1)
p = torch.tensor([1.0, 1e-12])
from_probs = Categorical(probs=p).log_prob(rare).item()
from_zero = Categorical(probs=torch.tensor([1.0, 0.0])).log_prob(rare).item()
from_logits = Categorical(logits=p.log()).log_prob(rare).item()
print(f"log_prob of 1e-12: {from_probs:.3f} from probs, {from_logits:.3f} from logits; of 0 from probs: {from_zero:.3f}")
assert abs(from_logits - math.log(1e-12)) < 1e-3
assert from_probs == from_zero and abs(from_probs + 15.942) < 1e-3, "probabilities are no longer clamped"
PY
