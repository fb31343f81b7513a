"""An integer model and its windows: tokens to bytes and back, the same on every machine."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .code_encoder import CodeEncoder
from .code_prior import CodeCoder, check_code, fixed_point
from .entropy_coder import RangeDecoder, RangeEncoder
from .plain_decoder import PlainDecoder
from .weights import Sizes, Tensors, check_tensors, model_id

# Rises with every change of the arithmetic: the identity of a model holds it.
ARITHMETIC_VERSION = 1
WEIGHTS_FILE, SIZES_FILE, TOKENIZER_FILE = "integer_model.safetensors", "codec.json", "tokenizer.json"
# Windows that are decoded in step, tokens that are scored at once, and rows of counts that exist at once.
WINDOWS_IN_STEP = 64
TOKENS_AT_ONCE = 8192
COUNT_ROWS = 256

Tokens = Sequence[int]


class IntegerModel:
    """Codes windows of tokens with exact integer counts. Made by `build_integer_model`, or loaded from its folder.

    Attributes:
        id: SHA-256 over integers, tables, tokenizer and window size: two models of one id decode alike.
        context: n; a window and its context hold up to n - 1 tokens, BOS is implied before them.
        has_code: whether windows may begin with a code (an EEM).
    """

    def __init__(
        self,
        sizes: Sizes,
        tensors: Tensors,
        tokenizer: PreTrainedTokenizerBase,
        tokenizer_json: str,
        code_encoder: CodeEncoder | None = None,
    ) -> None:
        check_tensors(sizes, tensors)
        # safetensors writes the memory of an array as it lies, whatever its strides.
        self.sizes, self.tensors = sizes, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        self.tokenizer = tokenizer
        self._tokenizer_json = tokenizer_json
        self._code_encoder = code_encoder
        self.context = sizes.context
        self.has_code = sizes.introduction != "none"
        self.id = model_id(sizes, tensors, tokenizer_json, ARITHMETIC_VERSION)
        if self.has_code:
            check_code(sizes, tensors)
            self._code_coder = CodeCoder(sizes, tensors)
        self._decoder = PlainDecoder(sizes, tensors)

    def encode_windows(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
        codes: Sequence[np.ndarray | None] | None = None,
    ) -> list[bytes]:
        """The payload of each window, decodable alone.

        Args:
            contexts: tokens between BOS and each window that the decoder knows already.
            codes: code numbers from `encode_codes`, or None where a window goes without.

        Raises:
            ValueError: tokens outside the vocabulary, a window longer than the context, codes for a causal model.
        """
        payloads = [b""] * len(windows)
        codes = self._checked_codes(codes, len(windows))
        for index, symbols in self._scores(windows, contexts, codes):
            encoder = RangeEncoder()
            if codes[index] is not None:
                self._code_coder.encode(encoder, codes[index])
            for start, count, total in symbols.T.tolist():
                encoder.encode(start, count, total)
            payloads[index] = encoder.finish()
        return payloads

    def window_costs_bits(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
        codes: Sequence[np.ndarray | None] | None = None,
    ) -> list[float]:
        """`sum -log2(count / total)` of each window, its code included: its payload without rounding to bytes."""
        costs = [0.0] * len(windows)
        codes = self._checked_codes(codes, len(windows))
        for index, (_, counts, totals) in self._scores(windows, contexts, codes):
            costs[index] = float((np.log2(totals) - np.log2(counts)).sum())
            if codes[index] is not None:
                costs[index] += sum(
                    math.log2(total / count) for _, count, total in self._code_coder.symbols(codes[index])
                )
        return costs

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[Tokens] | None = None,
        with_code: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The tokens of each payload, `lengths` of them.

        Raises:
            ValueError: a damaged payload, as far as it is noticed; lengths or contexts that do not fit.
        """
        contexts = [()] * len(payloads) if contexts is None else contexts
        with_code = [False] * len(payloads) if with_code is None else with_code
        if any(with_code) and not self.has_code:
            raise ValueError("a window has a code, and this codec model is causal: it has none.")
        self._check_lengths(lengths, contexts)
        decoded: list[list[int]] = [[] for _ in payloads]
        # Windows of about one length in step, those that end last in front.
        order = sorted(range(len(payloads)), key=lambda index: -lengths[index] - len(contexts[index]))
        for first in range(0, len(order), WINDOWS_IN_STEP):
            group = order[first : first + WINDOWS_IN_STEP]
            columns = zip(*((payloads[i], lengths[i], contexts[i], with_code[i]) for i in group))
            for index, tokens in zip(group, self._decode_in_step(*map(list, columns))):
                decoded[index] = tokens
        return decoded

    def encode_codes(self, windows: Sequence[Tokens]) -> list[np.ndarray]:
        """The code numbers of each window, by the float encoder: they are stored, so they need not be exact.

        Raises:
            ValueError: a causal model, or a folder without its encoder.
        """
        if self._code_encoder is None:
            raise ValueError("this codec model has no encoder: it is causal, and its windows have no code.")
        return self._code_encoder.encode([[self.sizes.bos_token_id, *window] for window in windows], self.tensors)

    def _checked_codes(
        self, codes: Sequence[np.ndarray | None] | None, num_windows: int
    ) -> Sequence[np.ndarray | None]:
        codes = [None] * num_windows if codes is None else codes
        if any(code is not None for code in codes) and not self.has_code:
            raise ValueError("codes were given for a causal codec model: leave them out.")
        return codes

    def _check_lengths(self, lengths: Sequence[int], contexts: Sequence[Tokens]) -> None:
        for length, context in zip(lengths, contexts):
            if length < 0 or length + len(context) > self.context - 1:
                raise ValueError(
                    f"a window of {length} tokens after {len(context)} of context does not fit the model's "
                    f"{self.context - 1}: split the text into shorter windows."
                )

    def _memory(self, codes: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """`[B, D or P]`; zero where a window goes without a code."""
        memory = self._decoder.memory(None, len(codes))
        for index, code in enumerate(codes):
            if code is not None:
                fixed = fixed_point(np.asarray(code, dtype=np.int64)[None], self.sizes.code_dtype, self.tensors)
                memory[index] = self._decoder.memory(fixed, 1)[0]
        return memory

    def _scores(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None,
        codes: Sequence[np.ndarray | None],
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Of each window: start, count and total of its tokens, `[3, T]`; in the order of length."""
        contexts = [()] * len(windows) if contexts is None else contexts
        self._check_lengths([len(window) for window in windows], contexts)
        lengths = [len(window) + len(context) for window, context in zip(windows, contexts)]
        order = sorted(range(len(windows)), key=lengths.__getitem__)
        batch_size = max(1, TOKENS_AT_ONCE // self.context)
        for first in range(0, len(order), batch_size):
            group = order[first : first + batch_size]
            tokens_BT = np.full((len(group), 1 + lengths[group[-1]]), self.sizes.bos_token_id, dtype=np.int64)
            for row, index in enumerate(group):
                tokens_BT[row, 1 : 1 + lengths[index]] = [*contexts[index], *windows[index]]
            if tokens_BT.min() < 0 or tokens_BT.max() >= self.sizes.vocab_size:
                raise ValueError("a window holds a token outside the vocabulary: is this the model's tokenizer?")
            x_BTD = self._decoder.states(tokens_BT[:, :-1], self._memory([codes[index] for index in group]))
            for row, index in enumerate(group):
                scored = slice(len(contexts[index]), lengths[index])
                yield index, self._symbols(x_BTD[row, scored], tokens_BT[row, 1:][scored])

    def _symbols(self, x_RD: np.ndarray, tokens_R: np.ndarray) -> np.ndarray:
        symbols = np.zeros((3, len(tokens_R)), dtype=np.int64)
        for first in range(0, len(tokens_R), COUNT_ROWS):
            rows = slice(first, first + COUNT_ROWS)
            counts_RV, totals_R = self._decoder.counts(x_RD[rows])
            chosen = tokens_R[rows, None]
            count_R = np.take_along_axis(counts_RV, chosen, 1)[:, 0]
            start_R = np.take_along_axis(counts_RV.cumsum(1), chosen, 1)[:, 0] - count_R
            symbols[:, rows] = start_R, count_R, totals_R
        return symbols

    def _decode_in_step(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[Tokens],
        with_code: Sequence[bool],
    ) -> list[list[int]]:
        """Windows sorted by `lengths` with contexts, the longest first."""
        coders = [RangeDecoder(payload) for payload in payloads]
        codes = [self._code_coder.decode(coder) if has else None for coder, has in zip(coders, with_code)]
        ends = [len(context) + length for context, length in zip(contexts, lengths)]
        texts = [[self.sizes.bos_token_id, *context] for context in contexts]
        cache = self._decoder.begin(len(coders), self._memory(codes))
        # What all windows know already goes in at once.
        known = min(map(len, contexts))
        inputs = np.array([text[: 1 + known] for text in texts], dtype=np.int64)
        num_active = len(coders)
        for position in range(known, ends[0]):
            while ends[num_active - 1] <= position:
                num_active -= 1
            if num_active < len(inputs):
                inputs = inputs[:num_active]
                cache.keep(np.arange(num_active))
            x_BD = self._decoder.extend(cache, inputs)[:, -1]
            counts_BV, totals_B = self._decoder.counts(x_BD)
            for row in range(num_active):
                if len(texts[row]) == position + 1:
                    texts[row].append(_decode_symbol(coders[row], counts_BV[row], int(totals_B[row])))
            inputs = np.array([[text[position + 1]] for text in texts[:num_active]], dtype=np.int64)
        for coder in coders:
            coder.check()
        return [text[1 + len(context) :] for text, context in zip(texts, contexts)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Integers, tables, tokenizer and card; of an EEM its float encoder too. No code."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        (folder / TOKENIZER_FILE).write_text(self._tokenizer_json, encoding="utf-8")
        save_file(self.tensors, folder / WEIGHTS_FILE)
        if self._code_encoder is not None:
            self._code_encoder.save(folder)
        content = {"arithmetic_version": ARITHMETIC_VERSION, "id": self.id, "sizes": asdict(self.sizes)}
        (folder / SIZES_FILE).write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(_card(self))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "IntegerModel":
        """Load a folder that `save_pretrained` wrote.

        Raises:
            ValueError: another version of the arithmetic, a tensor outside the format's bounds, or files that are not
                those the id was made of.
        """
        folder = Path(folder)
        if not (folder / SIZES_FILE).is_file():
            raise ValueError(f"{folder} is no codec model: it has no {SIZES_FILE}. Make one with build_integer_model.")
        content = json.loads((folder / SIZES_FILE).read_text())
        if content["arithmetic_version"] != ARITHMETIC_VERSION:
            raise ValueError(
                f"{folder} was built for version {content['arithmetic_version']} of the codec's arithmetic, and this "
                f"package computes version {ARITHMETIC_VERSION}: install the package that built it."
            )
        sizes = Sizes(**content["sizes"])
        model = cls(
            sizes,
            load_file(folder / WEIGHTS_FILE),
            AutoTokenizer.from_pretrained(folder),
            (folder / TOKENIZER_FILE).read_text(encoding="utf-8"),
            CodeEncoder.load(folder) if sizes.introduction != "none" else None,
        )
        if model.id != content["id"]:
            raise ValueError(f"{folder}: weights, tables or tokenizer are not those of model {content['id'][:12]}.")
        return model


def _decode_symbol(coder: RangeDecoder, counts_V: np.ndarray, total: int) -> int:
    ends_V = counts_V.cumsum()
    # What lies beyond the last count belongs to nobody: the coder then finds the payload damaged.
    token = min(int(np.searchsorted(ends_V, coder.target(total), side="right")), len(ends_V) - 1)
    count = int(counts_V[token])
    coder.take(int(ends_V[token]) - count, count, total)
    return token


def _card(model: IntegerModel) -> str:
    sizes = model.sizes
    return (
        "---\nlibrary_name: modeling-eem\ntags: [compression, masked-mixer]\n---\n# Codec model\n\n"
        f"Integer model `{model.id[:12]}`: {sizes.num_layers} layers of {sizes.hidden_size} features, "
        f"{sizes.context} tokens a window, {sizes.vocab_size} tokens. It compresses and restores files exactly:\n\n"
        "```python\nfrom modeling_eem.codec import Codec\n\ncodec = Codec.from_pretrained(FOLDER)\n```\n"
    )
