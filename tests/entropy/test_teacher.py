"""A teacher's nats told of another tokenizer's tokens: totals kept, every byte in its place."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_eem.data.tokenizer import encode_text, token_bytes, train_tokenizer
from modeling_eem.entropy import CausalEntropy, TeacherEntropy
from modeling_eem.entropy.teacher import copy_to_bytes, spread_over_bytes

CORPUS = ["the whale, the sea", "naïve café €5 😀😀 ok", "日本 whales"] * 3
TEXTS = ["the naïve whale 😀 costs €5", "a", "日本😀", " \n\n  tail  "]
CONTEXT = 64


@pytest.fixture(scope="module")
def student() -> PreTrainedTokenizerBase:
    """Byte-level; its merges cut the emoji in two."""
    return train_tokenizer(CORPUS, 272)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerBase:
    return train_tokenizer(CORPUS[::3], 263)


def _byte_fallback() -> PreTrainedTokenizerFast:
    """Letters and words behind a word-boundary sign, and single bytes for the rest, as in Llama 2's tokenizer."""
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁theawl", "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def _dropping_spaces() -> PreTrainedTokenizerFast:
    """Whole words and single characters; what is white space is in no token."""
    characters = sorted(set("".join(TEXTS)) - {" ", "\n"})
    vocabulary = {token: index for index, token in enumerate(["<s>", "<unk>", *characters])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level": lambda: train_tokenizer(CORPUS[::3], 263),
    "byte fallback": _byte_fallback,
    "dropping spaces": _dropping_spaces,
}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def other_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.param()


def _teacher(make_causal: Callable, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    size = max(tokenizer.get_vocab().values()) + 1
    bos = tokenizer.bos_token_id
    return make_causal("llama", vocab_size=size, max_position_embeddings=CONTEXT, bos_token_id=bos)


def test_every_document_keeps_its_total(
    other_tokenizer: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """To 1e-6, where tokens hold parts of characters, span no byte, or leave bytes to none."""
    teacher = _teacher(make_causal, other_tokenizer)
    expected = CausalEntropy(teacher)(TEXTS, other_tokenizer).totals()
    result = TeacherEntropy(teacher, other_tokenizer, student)(TEXTS)
    torch.testing.assert_close(result.totals(), expected, rtol=1e-6, atol=0)
    is_text = result.attention_mask & (result.ids != student.bos_token_id)
    assert torch.equal(is_text, ~result.values.isnan())
    assert (result.values[is_text] > 0).all() and (result.method, result.unit) == ("teacher", "nats")


def test_a_student_of_any_kind_keeps_the_total_too(
    other_tokenizer: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    teacher = _teacher(make_causal, byte_level)
    expected = CausalEntropy(teacher)(TEXTS, byte_level).totals()
    totals = TeacherEntropy(teacher, byte_level, other_tokenizer)(TEXTS).totals()
    torch.testing.assert_close(totals, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", ["bytes", "character_mean"])
def test_the_same_tokenizer_gives_the_causal_entropies(
    spread: str, student: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """For the mean over characters where no token holds a part of one."""
    teacher = _teacher(make_causal, student)
    texts = TEXTS if spread == "bytes" else ["the whale, the sea", "a"]
    values = TeacherEntropy(teacher, student, student, spread)(texts).values
    torch.testing.assert_close(values, CausalEntropy(teacher)(texts, student).values, equal_nan=True)


NAN = float("nan")


@pytest.mark.parametrize(
    "values, spans, spread, copied",
    [
        ([2.0, 4.0], [(0, 1), (1, 3)], [2.0, 2.0, 2.0], [2.0, 4.0, 4.0]),
        # BOS; a token without bytes gives to the next, the last of them to the one before
        ([NAN, 2.0, 3.0, 1.0], [(0, 0), (0, 0), (0, 3), (3, 3)], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]),
        # bytes of no token: before the first, between two, after the last
        ([2.0, 3.0], [(1, 2), (3, 4)], [1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0, 3.0]),
        # a character in several tokens
        ([3.0, 6.0, 1.0], [(0, 3), (0, 3), (3, 4)], [3.0, 3.0, 3.0, 1.0], [3.0, 3.0, 3.0, 1.0]),
        # a first token without a value; no token with bytes
        ([NAN, 4.0], [(0, 2), (2, 4)], [NAN, NAN, 2.0, 2.0], [NAN, NAN, 4.0, 4.0]),
        ([NAN], [(0, 0)], [NAN, NAN], [NAN, NAN]),
    ],
)
def test_bytes_of_awkward_tokens(
    values: list[float], spans: list[tuple[int, int]], spread: list[float], copied: list[float]
) -> None:
    for to_bytes, expected in ((spread_over_bytes, spread), (copy_to_bytes, copied)):
        actual = to_bytes(torch.tensor(values).double(), torch.tensor(spans), len(expected))
        torch.testing.assert_close(actual, torch.tensor(expected).double(), equal_nan=True)


def _bytes_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[bytes]:
    return token_bytes(tokenizer, encode_text(tokenizer, text))


def test_bytes_and_characters_by_hand(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    teacher = _teacher(make_causal, byte_level)
    text = TEXTS[0]
    nats = CausalEntropy(teacher)([text], byte_level).values[0, 1:].tolist()
    shares, losses = [], []
    for value, held in zip(nats, _bytes_of(byte_level, text)):
        shares += [value / len(held)] * len(held)
        losses += [value] * len(held)
    starts = [sum(len(character.encode()) for character in text[:i]) for i in range(len(text))]
    spread, mean, place = [], [], 0
    for held in _bytes_of(student, text):
        here = range(place, place + len(held))
        spread.append(sum(shares[byte] for byte in here))
        characters = {max(start for start in starts if start <= byte) for byte in here}
        mean.append(sum(losses[start] for start in characters) / len(characters))
        place += len(held)
    for name, expected in (("bytes", spread), ("character_mean", mean)):
        values = TeacherEntropy(teacher, byte_level, student, name)([text]).values[0, 1:]
        torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    assert any(len(held.decode(errors="ignore").encode()) < len(held) for held in _bytes_of(student, text))


def test_rows_of_ids_are_read_as_their_text(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """Padded on the left too; documents that BOS parts are read one by one; what ends one is the teacher's EOS."""
    teacher = _teacher(make_causal, byte_level)
    estimator = TeacherEntropy(teacher, byte_level, student)
    alone = estimator(TEXTS[:2])
    first, second = (ids[mask] for ids, mask in zip(alone.ids, alone.attention_mask))
    row = torch.cat([torch.tensor([1, 1]), first, second, torch.tensor([0])])[None]
    mask = torch.arange(row.shape[1])[None] >= 2
    values = estimator(tokenizer=student, input_ids=row, attention_mask=mask).values[0]
    padding = row.new_full((2,), torch.nan, dtype=torch.float64)
    ends = []
    for text in TEXTS[:2]:
        whole = torch.tensor([[0, *encode_text(byte_level, text), 0]])
        ends.append(CausalEntropy(teacher)(input_ids=whole).values[0, -1:])
    expected = torch.cat([padding, alone.rows()[0], ends[0], alone.rows()[1][1:], ends[1]])
    # The teacher computes in float32, and in other passes here and there: its tolerances, not those of float64.
    torch.testing.assert_close(values, expected, rtol=1.3e-6, atol=1e-5, equal_nan=True)


def test_a_row_cut_inside_a_character(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """The teacher reads whole characters; the student's tokens that hold the others' bytes are not scored."""
    estimator = TeacherEntropy(_teacher(make_causal, byte_level), byte_level, student)
    text = "日ok日"
    ids = torch.tensor([0, *_single_bytes(student, text)])
    whole = estimator(input_ids=ids[None]).values[0]
    assert whole[1:].isfinite().all()
    cut = estimator(input_ids=torch.cat([ids[:1], ids[2:-1]])[None]).values[0]
    expected = estimator(["ok"]).values[0]
    assert cut[1:3].isnan().all() and cut[5:].isnan().all()
    torch.testing.assert_close(cut[3:5].sum(), expected[1:].sum())
    alone = estimator(input_ids=ids[None, :2]).values[0]
    assert alone.isnan().all()


def _single_bytes(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's bytes as tokens of one byte each."""
    of_byte = {held: index for index in range(2, 258) for held in token_bytes(tokenizer, [index])}
    return [of_byte[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("spread", ["bytes", "character_mean"])
def test_a_row_without_text_is_not_scored(
    spread: str, student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """BOS and EOS: what is left of a document that filled the row before it."""
    estimator = TeacherEntropy(_teacher(make_causal, byte_level), byte_level, student, spread)
    text = estimator(input_ids=torch.tensor([[0, 5]])).values
    values = estimator(input_ids=torch.tensor([[0, 0], [0, 5]])).values
    assert values[0].isnan().all()
    torch.testing.assert_close(values[1:], text, equal_nan=True)


def test_a_document_that_fills_the_teachers_context_has_no_end(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    estimator = TeacherEntropy(_teacher(make_causal, byte_level), byte_level, student)
    for text, has_end in (("whale ", True), ("x" * (CONTEXT - 1), False)):
        ids = torch.tensor([[0, *encode_text(student, text), 0]])
        values = estimator(input_ids=ids).values[0]
        assert values[1:-1].isfinite().all() and bool(values[-1].isfinite()) is has_end


def test_a_teacher_without_bos_reads_eos_first(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """As one whose BOS is that token: nothing of the text is left out."""
    teacher = _teacher(make_causal, byte_level)
    headless = train_tokenizer(CORPUS[::3], 263)
    headless.bos_token = None
    expected = TeacherEntropy(teacher, byte_level, student)(TEXTS).values
    torch.testing.assert_close(TeacherEntropy(teacher, headless, student)(TEXTS).values, expected, equal_nan=True)
    assert not expected[0, 1:].isnan().all()


def test_a_teacher_without_bos_and_eos(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """What shares a byte with its first token is not scored; a text of one of its tokens not at all."""
    teacher = _teacher(make_causal, byte_level)
    headless = train_tokenizer(CORPUS[::3], 263)
    headless.bos_token = headless.eos_token = None
    nats = CausalEntropy(teacher)([TEXTS[0]], headless)
    first = int(nats.offsets[0, 0, 1])
    result = TeacherEntropy(teacher, headless, student)([TEXTS[0], "a"])
    overlaps = (result.offsets[0, :, 0] < first) | (result.ids[0] == 0)
    assert torch.equal(result.values[0].isnan() & result.attention_mask[0], overlaps & result.attention_mask[0])
    assert result.values[1].isnan().all()


def test_texts_longer_than_the_teachers_context(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    teacher = _teacher(make_causal, byte_level)
    text = "the whale " * 20
    with pytest.raises(ValueError, match="row 1 holds a document of .* more than its 64: .*--stride 32"):
        TeacherEntropy(teacher, byte_level, student)(["a", text])
    total = TeacherEntropy(teacher, byte_level, student, stride=20)([text]).totals()
    torch.testing.assert_close(total, CausalEntropy(teacher, stride=20)([text], byte_level).totals())


@pytest.mark.parametrize("stride", [None, 20])
def test_rows_are_checked_before_the_work(
    stride: int | None, student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    """With a stride they were not."""
    estimator = TeacherEntropy(_teacher(make_causal, byte_level), byte_level, student, stride=stride)
    not_utf8 = torch.tensor([0, *_single_bytes(student, "日")[:1], *_single_bytes(student, "ok")])
    with pytest.raises(ValueError, match="row 7 is not UTF-8 text at byte 0"):
        estimator.check_row(not_utf8, 7)
    estimator.check_row(torch.tensor([0, 0]), 7)


def test_what_is_refused(
    student: PreTrainedTokenizerBase, byte_level: PreTrainedTokenizerBase, make_causal: Callable
) -> None:
    teacher = _teacher(make_causal, byte_level)
    estimator = TeacherEntropy(teacher, byte_level, student)
    not_utf8: Tensor = torch.tensor([[0, *_single_bytes(student, "日")[:1], *_single_bytes(student, "ok")]])
    for call, message in [
        (lambda: TeacherEntropy(teacher, byte_level, student, "mean"), "spread must be one of bytes, character_mean"),
        (lambda: TeacherEntropy(teacher, student, student), "the tokenizer has 272 tokens and the model 263"),
        (lambda: estimator(["a"], byte_level), "not the student's"),
        (lambda: estimator(["a", ""]), "text 1 is empty"),
        (lambda: estimator(input_ids=torch.tensor([[0, 272]])), "input_ids hold 272, and the tokenizer has 272"),
        (lambda: estimator(input_ids=not_utf8), "row 0 is not UTF-8 text at byte 0"),
        (lambda: estimator(), "one of the two"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
