"""The integer model: turns windows of tokens into bytes and back, the same on every machine."""

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from modeling_eem.files import read_record, readable

from .entropy_coder import RangeDecoder, RangeEncoder
from .weights import Sizes, Tensors, check_tensors, model_id
from .window_model import DamagedPayload

if TYPE_CHECKING:  # PyTorch and transformers are imported only for a model with a code
    from transformers import PreTrainedTokenizerBase

    from .code_encoder import CodeEncoder
    from .fast_decoder import FastDecoder
    from .plain_decoder import PlainDecoder

# Increases with every change of the arithmetic; it is part of a model's id.
ARITHMETIC_VERSION = 1
WEIGHTS_FILE, SIZES_FILE, TOKENIZER_FILE = "integer_model.safetensors", "codec.json", "tokenizer.json"

Tokens = Sequence[int]


class IntegerModel:
    """Codes windows of tokens with exact integer counts. Made by `build_integer_model`, or loaded from its folder.

    Attributes:
        id: SHA-256 over integers, tables, tokenizer and window size: two models with one id decode alike.
        context: n; a window and its context hold up to n - 1 tokens, after an implied BOS.
        vocab_size: tokens are below this.
        has_code: whether windows may begin with a code (an EEM).
        backend_tokenizer: the tokenizer, as an object of the `tokenizers` library.
    """

    def __init__(
        self,
        sizes: Sizes,
        tensors: Tensors,
        tokenizer: "PreTrainedTokenizerBase | Path",
        tokenizer_json: str,
        code_encoder: "CodeEncoder | None" = None,
    ) -> None:
        check_tensors(sizes, tensors)
        # safetensors writes an array's memory as it is, and ignores its strides.
        self.sizes, self.tensors = sizes, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        self._tokenizer = tokenizer  # or the folder that holds it
        self.backend_tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer_json = tokenizer_json
        self._code_encoder = code_encoder
        self.context, self.vocab_size = sizes.context, sizes.vocab_size
        self.has_code = sizes.introduction != "none"
        self.id = model_id(sizes, tensors, tokenizer_json, ARITHMETIC_VERSION)
        if self.has_code:
            from .code_prior import CodeCoder

            self._code_coder = CodeCoder(sizes, tensors)
        self._decoder = _decoder_class()(self.sizes, self.tensors)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer as an object of transformers, loaded on first use."""
        if isinstance(self._tokenizer, Path):
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._tokenizer)
        return self._tokenizer

    def encode_windows(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
        codes: Sequence[np.ndarray | None] | None = None,
    ) -> list[bytes]:
        """The payload of each window; each decodes alone.

        Args:
            contexts: tokens between BOS and each window that the decoder already knows.
            codes: code numbers from `encode_codes`, or None for a window without a code.

        Raises:
            ValueError: for tokens outside the vocabulary, a window longer than the context, or codes for a causal
                model.
        """
        payloads = [b""] * len(windows)
        codes = self._checked_codes(codes, len(windows))
        for index, symbols in enumerate(self._scores(windows, contexts, codes)):
            encoder = RangeEncoder()
            code = codes[index]
            if code is not None:
                self._code_coder.encode(encoder, code)
            for start, count, total in symbols.T.tolist():
                encoder.encode(start, count, total)
            payloads[index] = encoder.final_bytes()
        return payloads

    def window_costs_bits(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
        codes: Sequence[np.ndarray | None] | None = None,
    ) -> list[float]:
        """`sum -log2(count / total)` of each window and its code: the payload's bits before rounding to bytes."""
        codes = self._checked_codes(codes, len(windows))
        costs = [float(costs_T.sum()) for costs_T in self.token_costs_bits(windows, contexts, codes)]
        for index, code in enumerate(codes):
            if code is not None:
                costs[index] += sum(math.log2(total / count) for _, count, total in self._code_coder.symbols(code))
        return costs

    def token_costs_bits(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None = None,
        codes: Sequence[np.ndarray | None] | None = None,
    ) -> list[np.ndarray]:
        """`-log2(count / total)` of each token of each window, `[T]`, as in the payload; without the code."""
        scores = self._scores(windows, contexts, self._checked_codes(codes, len(windows)))
        return [np.log2(totals_T) - np.log2(counts_T) for _, counts_T, totals_T in scores]

    def decode_windows(
        self,
        payloads: Sequence[bytes],
        lengths: Sequence[int],
        contexts: Sequence[Tokens] | None = None,
        with_code: Sequence[bool] | None = None,
    ) -> list[list[int]]:
        """The tokens of each payload, `lengths` of them.

        Raises:
            DamagedPayload: if a payload's end shows that it is damaged (only a check sum of the tokens shows all).
            ValueError: for lengths or contexts that do not fit.
        """
        contexts = [()] * len(payloads) if contexts is None else contexts
        with_code = [False] * len(payloads) if with_code is None else with_code
        if any(with_code) and not self.has_code:
            raise ValueError("a window has a code, and this codec model is causal: it has none.")
        self._check_lengths(lengths, contexts)
        coders = [RangeDecoder(payload) for payload in payloads]
        codes = [self._code_coder.decode(coder) if has else None for coder, has in zip(coders, with_code)]
        texts = self._texts(contexts)
        ends = [len(text) + length for text, length in zip(texts, lengths)]
        is_damaged = self._decoder.decode(coders, texts, ends, self._memory(codes)) if texts else []
        for index, coder in enumerate(coders):
            if is_damaged[index] or with_code[index] and codes[index] is None or not coder.is_at_end():
                raise DamagedPayload(index)
        return [text[len(text) - length :] for text, length in zip(texts, lengths)]

    def encode_codes(self, windows: Sequence[Tokens]) -> list[np.ndarray]:
        """The code numbers of each window, by the float encoder. They are stored, so they need not be exact.

        Raises:
            ValueError: for a causal model, or a folder without its encoder.
        """
        if self._code_encoder is None:
            raise ValueError("this codec model has no encoder: it is causal, and its windows have no code.")
        if not windows:
            return []
        values = self._code_encoder.values([[self.sizes.bos_token_id, *window] for window in windows])
        return list(self._code_coder.numbers(values))

    def _checked_codes(
        self, codes: Sequence[np.ndarray | None] | None, num_windows: int
    ) -> Sequence[np.ndarray | None]:
        codes = [None] * num_windows if codes is None else codes
        if any(code is not None for code in codes) and not self.has_code:
            raise ValueError("codes were given for a causal codec model: leave them out.")
        for code in codes:
            if code is not None:
                self._code_coder.symbols(code)  # refuses a code of another model
        return codes

    def _check_lengths(self, lengths: Sequence[int], contexts: Sequence[Tokens]) -> None:
        for length, context in zip(lengths, contexts):
            if length < 0 or length + len(context) > self.context - 1:
                raise ValueError(
                    f"a window of {length} tokens after {len(context)} of context does not fit the model's "
                    f"{self.context - 1}: split the text into shorter windows."
                )

    def _texts(self, rows: Sequence[Tokens]) -> list[list[int]]:
        """Rows with BOS. The compiled decoder uses tokens as places in memory, so they are checked here."""
        for row in rows:
            if len(row) and not 0 <= min(row) <= max(row) < self.sizes.vocab_size:
                raise ValueError("a window holds a token outside the vocabulary: is this the model's tokenizer?")
        return [[self.sizes.bos_token_id, *row] for row in rows]

    def _memory(self, codes: Sequence[np.ndarray | None]) -> np.ndarray:
        return self._decoder.memory([None if code is None else self._code_coder.fixed_point(code) for code in codes])

    def _scores(
        self,
        windows: Sequence[Tokens],
        contexts: Sequence[Tokens] | None,
        codes: Sequence[np.ndarray | None],
    ) -> list[np.ndarray]:
        """Start, count and total of each window's tokens, `[3, T]` each."""
        contexts = [()] * len(windows) if contexts is None else contexts
        self._check_lengths([len(window) for window in windows], contexts)
        texts = self._texts([[*context, *window] for context, window in zip(contexts, windows)])
        return self._decoder.score(texts, [1 + len(context) for context in contexts], self._memory(codes))

    def save_pretrained(self, folder: str | Path) -> None:
        """Save integers, tables, tokenizer and card, and an EEM's float encoder; no Python code."""
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
            ValueError: for another version of the arithmetic, a tensor outside the format's bounds, or files that are
                damaged or do not match the id.
        """
        folder = Path(folder)
        if not (folder / SIZES_FILE).is_file():
            raise ValueError(f"{folder} is not a codec model: it has no {SIZES_FILE}. Make one with eem codec build.")
        content = read_record(folder / SIZES_FILE, {"arithmetic_version": int, "id": str, "sizes": dict})
        if content["arithmetic_version"] != ARITHMETIC_VERSION:
            raise ValueError(
                f"{folder} was built for version {content['arithmetic_version']} of the codec's arithmetic, and this "
                f"package computes version {ARITHMETIC_VERSION}: install the package that built it."
            )
        with readable(folder, "codec model"):
            sizes, encoder = Sizes(**content["sizes"]), None
            if sizes.introduction != "none":
                from .code_encoder import CodeEncoder

                encoder = CodeEncoder.load(folder)
            tokenizer_json = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
            model = cls(sizes, load_file(folder / WEIGHTS_FILE), folder, tokenizer_json, encoder)
        if model.id != content["id"]:
            raise ValueError(f"{folder}: weights, tables or tokenizer are not those of model {content['id'][:12]!r}.")
        return model


def _decoder_class() -> "type[PlainDecoder | FastDecoder]":
    """The compiled decoder; without numba the plain one, which gives the same integers slowly."""
    if importlib.util.find_spec("numba") is None:
        from .plain_decoder import PlainDecoder

        return PlainDecoder
    from .fast_decoder import FastDecoder

    return FastDecoder


def _card(model: IntegerModel) -> str:
    sizes = model.sizes
    return (
        "---\nlibrary_name: modeling-eem\ntags: [compression, masked-mixer]\n---\n# Codec model\n\n"
        f"Integer model `{model.id[:12]}`: {sizes.num_layers} layers of {sizes.hidden_size} features, "
        f"{sizes.context} tokens a window, {sizes.vocab_size} tokens. It compresses and restores files exactly. In "
        "this folder:\n\n"
        "```python\nfrom modeling_eem.codec import Codec\n\n"
        'codec = Codec.from_pretrained(".")  # or a path to this folder, or its name on the Hub\n'
        'blob = codec.compress(b"My fellow citizens, the state of our Union is strong.")\n'
        "print(len(blob), codec.decompress(blob))\n```\n"
    )
