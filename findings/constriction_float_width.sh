#!/usr/bin/env bash
# Expected: the same probabilities as float32 and as float64 (every float32 is a float64) are the same model for a coder.
# Happens: with perfect=False they are two models with other words, so what one coded the other cannot decode. And a
#   decoder does not stop: it gives as many symbols past the end as are asked for, without an error.
# Version: constriction 0.5.0, numpy 2.4.6.
# Seen: the same words: False; symbols given for 20000 that were coded: 30000
. "$(dirname "$0")/_environment.sh"
packages numpy==2.4.6 constriction==0.5.0
python - <<'PY'
import constriction
import numpy as np

generator = np.random.default_rng(0)
narrow = generator.dirichlet(np.ones(50)).astype(np.float32)
wide = narrow.astype(np.float64)
symbols = generator.choice(50, size=20000).astype(np.int32)
models = [constriction.stream.model.Categorical(p, perfect=False) for p in (narrow, wide)]
words = []
for model in models:
    encoder = constriction.stream.queue.RangeEncoder()
    encoder.encode(symbols, model)
    words.append(encoder.get_compressed())
same = np.array_equal(*words)
past = len(constriction.stream.queue.RangeDecoder(words[0]).decode(models[0], 30000))
print(f"the same words: {same}; symbols given for 20000: {past}")
assert np.array_equal(narrow, wide) and not same and past == 30000
PY
