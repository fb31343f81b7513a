"""Reference decoder of the codec's windows: NumPy only, one window and one token at a time, sharing no code.

It follows the operations listed in `tensor_grids.TENSORS` and nothing else: a reader can check each against the table.
It is slow and plain on purpose; every other decoder must give the same tokens.

    reference = ReferenceDecoder(folder)
    tokens = reference.decode(payload, length)

As a program, `python reference.py FOLDER`, it reads lines of JSON `{"payload": hexadecimal, "length": …,
"context": […], "with_code": …}` from standard input and prints JSON lists. It needs neither PyTorch nor this package.
"""

import json
import sys
from pathlib import Path

import numpy as np

DTYPES = {"I8": "<i1", "I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file: the header's length in 8 bytes, the header in JSON, the numbers."""
    data = path.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:header_end]).items():
        if name != "__metadata__":
            first, end = (header_end + offset for offset in entry["data_offsets"])
            numbers = np.frombuffer(data[first:end], dtype=DTYPES[entry["dtype"]])
            native = numbers.astype(numbers.dtype.newbyteorder("="))
            tensors[name] = native.reshape(entry["shape"])
    return tensors


def rounded(integers: np.ndarray, scale: np.ndarray | np.float64, lowest: int, highest: int) -> np.ndarray:
    """rint(integers * scale) in float64, saturated, as int64."""
    product = np.rint(integers.astype(np.float64) * np.asarray(scale, dtype=np.float64))
    return np.maximum(lowest, np.minimum(highest, product)).astype(np.int64)


class RangeReader:
    """The coder's state as integers: the string is a number in [low, low + width), with 64 bits of it in view."""

    def __init__(self, payload: bytes):
        self.payload = payload
        self.place = 8
        self.value = int.from_bytes((payload + bytes(8))[:8], "big")
        self.low = 0
        self.width = 2**64 - 1

    def read(self, counts: np.ndarray, total: int) -> int:
        """The symbol that owns the value: symbol s owns `counts[s]` parts of `total`, one after the other."""
        part = self.width // total
        target = min((self.value - self.low) // part, total - 1)
        ends = np.cumsum(counts)
        if target >= ends[-1]:
            raise ValueError("the payload is damaged: it holds a symbol that does not exist.")
        symbol = 0
        while ends[symbol] <= target:
            symbol += 1
        self.low += part * (int(ends[symbol]) - int(counts[symbol]))
        self.width = part * int(counts[symbol])
        if not self.low <= self.value < self.low + self.width:
            raise ValueError("the payload is damaged: it holds a symbol that does not exist.")
        while self.width < 2**56:
            following = self.payload[self.place] if self.place < len(self.payload) else 0
            self.value = self.value * 256 + following
            self.low *= 256
            self.width *= 256
            self.place += 1
        return symbol

    def check_end(self) -> None:
        """The value must have the most zero bytes at its end, and be the smallest such; zeros are not stored."""
        for zeros in range(8, -1, -1):
            unit = 256**zeros
            shortest = (self.low + unit - 1) // unit * unit
            if shortest < self.low + self.width:
                break
        ends_in_zero = len(self.payload) > 0 and self.payload[-1] == 0
        if shortest != self.value or len(self.payload) > self.place or ends_in_zero:
            raise ValueError("the payload is damaged: it does not end as the encoder ends it.")


class ReferenceDecoder:
    """The decoder of a codec model's folder."""

    def __init__(self, folder: str | Path):
        content = json.loads((Path(folder) / "codec.json").read_text())
        if content["arithmetic_version"] != 1:
            raise ValueError(f"this is the reference of arithmetic 1, not {content['arithmetic_version']}.")
        self.sizes = content["sizes"]
        self.tensors = read_tensors(Path(folder) / "integer_model.safetensors")
        for name, tensor in self.tensors.items():
            if tensor.dtype.kind == "i":
                self.tensors[name] = tensor.astype(np.int64)
        self.heads = max(1, self.sizes["num_heads"])

    def decode(
        self, payload: bytes, length: int, context: list[int] | tuple[int, ...] = (), with_code: bool = False
    ) -> list[int]:
        """The `length` tokens of a payload that come after BOS and the tokens of `context`."""
        if not 0 <= length <= self.sizes["context"] - 1 - len(context):
            raise ValueError("a window and its context are longer than the model's context: use shorter windows.")
        reader = RangeReader(payload)
        memory = self.memory(reader) if with_code else self.occluded_memory()
        self.inputs: list[list[np.ndarray]] = [[] for _ in range(self.sizes["num_layers"])]
        if self.sizes["introduction"] == "token":
            self.position(memory)
        tokens = [self.sizes["bos_token_id"], *context]
        for index in range(len(context) + length):
            x = self.position(self.introduce(tokens[index], memory))
            if len(tokens) == index + 1:
                tokens.append(reader.read(*self.counts(x)))
        reader.check_end()
        return tokens[1 + len(context) :]

    # The code, and the memory made from it.

    def occluded_memory(self) -> np.ndarray:
        width = len(self.tensors["memory.scale"]) if "memory.scale" in self.tensors else 0
        return np.zeros(width, dtype=np.int64)

    def memory(self, reader: RangeReader) -> np.ndarray:
        """Read the code number by number, and project it."""
        prior = self.tensors["code.prior"]
        numbers = []
        lower = 1
        if "code.table" in self.tensors:
            lower = len(self.tensors["code.table"]) // prior.shape[1]
        for counts in prior:
            upper = reader.read(counts, int(counts.sum()))
            rest = reader.read(np.ones(lower, dtype=np.int64), lower) if lower > 1 else 0
            numbers.append(upper * lower + rest)
        if "code.table" in self.tensors:
            code = [int(self.tensors["code.table"][number]) for number in numbers]
        else:
            counts = self.tensors["code.scale_prior"][0]
            scale = int(self.tensors["code.scales"][reader.read(counts, int(counts.sum()))])
            largest = prior.shape[1] // 2 - 1
            # To the nearest integer, halves upwards.
            code = [(2 * (number - largest) * scale + largest) // (2 * largest) for number in numbers]
        sums = self.tensors["memory.weight"] @ np.array(code, dtype=np.int64)
        return rounded(sums + self.tensors["memory.bias"], self.tensors["memory.scale"], -(2**20 - 1), 2**20 - 1)

    def introduce(self, token: int, memory: np.ndarray) -> np.ndarray:
        """The first state of the residual stream."""
        name = "head.weight" if self.sizes["is_tied"] else "embedding.weight"
        scale = self.tensors["embedding.scale"][token]
        embedding = rounded(self.tensors[name][token], scale, -(2**20 - 1), 2**20 - 1)
        if self.sizes["introduction"] == "embedding":
            return np.concatenate([memory, embedding])
        if self.sizes["introduction"] == "combination":
            return np.clip(embedding + memory, -(2**20 - 1), 2**20 - 1)
        return embedding

    # One position through the blocks. `self.inputs[layer]` holds the mixing inputs of all positions so far.

    def position(self, x: np.ndarray) -> np.ndarray:
        for layer in range(self.sizes["num_layers"]):
            a = self.norm(f"{layer}.mixing_norm", x)
            if self.sizes["num_heads"]:
                a = rounded(*self.linear(f"{layer}.mixing_in", a), -127, 127)
            self.inputs[layer].append(a)
            sums, scale = self.mixing(layer)
            if self.sizes["num_heads"]:
                sums, scale = self.linear(f"{layer}.mixing_out", rounded(sums, scale, -127, 127))
            x = self.add(x, sums, scale)
            hidden = rounded(*self.linear(f"{layer}.up", self.norm(f"{layer}.mlp_norm", x)), -2048, 2047)
            activated = self.tensors[f"{layer}.activation.table"][hidden + 2048]
            x = self.add(x, *self.linear(f"{layer}.down", activated))
        return x

    @staticmethod
    def add(x: np.ndarray, sums: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.clip(x + rounded(sums, scale, -(2**40), 2**40), -(2**20 - 1), 2**20 - 1)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        d = len(x)
        s1 = int(x.sum())
        s2 = int((x * x).sum())
        spread = d * s2 - s1 * s1 + self.sizes["norm_epsilon"]
        r = np.float64(4096.0) / np.sqrt(np.float64(spread))
        u = np.rint((d * x - s1).astype(np.float64) * r).astype(np.int64)
        affine = u * self.tensors[f"{name}.gain"] + self.tensors[f"{name}.offset"]
        return rounded(affine, np.float64(2.0**-24), -127, 127)

    def linear(self, name: str, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of products with their bias, and each output's scale."""
        return self.tensors[f"{name}.weight"] @ a + self.tensors[f"{name}.bias"], self.tensors[f"{name}.scale"]

    def mixing(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the newest position over all positions up to it, and their scales, by head, feature and tap."""
        inputs = np.array(self.inputs[layer], dtype=np.int64)
        newest = len(inputs) - 1
        taps, d = self.sizes["kernel_size"], self.sizes["hidden_size"]
        width = d // self.heads
        row = slice(newest * (newest + 1) // 2, (newest + 1) * (newest + 2) // 2)
        sums, scale = np.zeros(d, dtype=np.int64), np.zeros(d)
        for head in range(self.heads):
            first = head * width
            for tap in range(taps):
                weights = self.tensors[f"{layer}.mixing.weight"][head, tap, row]
                # Output feature f reads input feature f + offset of the same head, or zero outside the head.
                offset = tap - (taps - 1) // 2
                written = slice(first + max(0, -offset), first + width - max(0, offset))
                read = slice(first + max(0, offset), first + width - max(0, -offset))
                if abs(offset) < width:
                    sums[written] += weights @ inputs[:, read]
            sums[first : first + width] += self.tensors[f"{layer}.mixing.bias"][head, newest]
            scale[first : first + width] = self.tensors[f"{layer}.mixing.scale"][head, newest]
        return sums, scale

    # From the last state to counts.

    def counts(self, x: np.ndarray) -> tuple[np.ndarray, int]:
        """Counts of all tokens, and their total."""
        m = max(1, int(np.abs(x).max()))
        head_input = np.rint(x.astype(np.float64) * (np.float64(127.0) / np.float64(m))).astype(np.int64)
        sums = self.tensors["head.weight"] @ head_input
        unit = np.float64(m) * self.tensors["head.factor"][0]
        logits = rounded(sums, self.tensors["head.scale"].astype(np.float64) * unit, -(2**22 - 1), 2**22 - 1)
        below = logits.max() - logits
        i = below % 256
        weights = (2**30 - i * (2817280 - 2813 * i)) >> np.minimum(below // 256, 31)
        total = int(weights.sum())
        shift = max(0, total.bit_length() - 31)
        return (weights >> shift) + 1, (total >> shift) + len(weights)


def main() -> None:
    decoder = ReferenceDecoder(sys.argv[1])
    for line in sys.stdin:
        window = json.loads(line)
        tokens = decoder.decode(
            bytes.fromhex(window["payload"]),
            window["length"],
            window.get("context", ()),
            window.get("with_code", False),
        )
        print(json.dumps(tokens))


if __name__ == "__main__":
    main()
