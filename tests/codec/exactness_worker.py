"""Encode and decode fixed windows in this process's environment; print the hash of the payloads.

python exactness_worker.py FOLDER DECODER WINDOWS_AT_ONCE THREADS
"""

import hashlib
import importlib
import sys

import numpy as np
import torch

from modeling_eem.codec import IntegerModel

NUM_WINDOWS = 64


def main() -> None:
    folder, decoder, at_once, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(threads)
    model = IntegerModel.from_pretrained(folder)
    module = importlib.import_module(f"modeling_eem.codec.{decoder.lower()}_decoder")
    model._decoder = getattr(module, f"{decoder}Decoder")(model.sizes, model.tensors)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, model.context, NUM_WINDOWS).tolist()
    windows = [rng.integers(3, model.sizes.vocab_size, length).tolist() for length in lengths]
    payloads = []
    for first in range(0, NUM_WINDOWS, at_once):
        some = slice(first, first + at_once)
        payloads += model.encode_windows(windows[some])
        assert model.decode_windows(payloads[some], lengths[some]) == windows[some]
    print(hashlib.sha256(b"".join(payloads)).hexdigest())


if __name__ == "__main__":
    main()
