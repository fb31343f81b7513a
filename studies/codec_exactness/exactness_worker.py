"""Encode and decode windows in this process's environment; print what came out as JSON.

    python exactness_worker.py FOLDER DECODER WINDOWS_AT_ONCE THREADS [WINDOWS.json]

Windows are lists of tokens; without a file, 64 of random tokens and lengths. Printed are the first 16 hexadecimal
digits of each payload's SHA-256, the number of tokens, how many windows decoded to others, and seconds.
"""

import hashlib
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from modeling_eem.codec import IntegerModel, set_num_threads

NUM_WINDOWS = 64


def random_windows(model: IntegerModel) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, model.context, NUM_WINDOWS).tolist()
    return [rng.integers(3, model.sizes.vocab_size, length).tolist() for length in lengths]


def main() -> None:
    folder, decoder, at_once, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    set_num_threads(threads)
    model = IntegerModel.from_pretrained(folder)
    module = importlib.import_module(f"modeling_eem.codec.{decoder.lower()}_decoder")
    model._decoder = getattr(module, f"{decoder}Decoder")(model.sizes, model.tensors)
    windows = json.loads(Path(sys.argv[5]).read_text()) if sys.argv[5:] else random_windows(model)
    payloads, wrong, seconds = [], 0, [0.0, 0.0]
    for first in range(0, len(windows), at_once):
        some = windows[first : first + at_once]
        times = [time.perf_counter()]
        encoded = model.encode_windows(some)
        times.append(time.perf_counter())
        decoded = model.decode_windows(encoded, [len(window) for window in some])
        times.append(time.perf_counter())
        seconds = [total + end - begin for total, begin, end in zip(seconds, times, times[1:])]
        wrong += sum(one != other for one, other in zip(decoded, some))
        payloads += encoded
    result = {
        "payloads": [hashlib.sha256(payload).hexdigest()[:16] for payload in payloads],
        "tokens": sum(map(len, windows)),
        "wrong": wrong,
        "seconds": seconds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
