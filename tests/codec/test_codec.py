"""Any bytes come back, in memory and in streams; models are told apart; sizes keep their bounds."""

import copy
import pickle
import random
import time
from collections.abc import Callable
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import Any

import pytest

from modeling_eem.codec import Codec, CodecError, DamagedFile, WrongModel, registry
from modeling_eem.codec.archive import Layout
from modeling_eem.codec.byte_windows import pack_bytes
from modeling_eem.codec.container import Header, Kind, pack_record
from modeling_eem.codec.trailer import Index

WAYS = ["bytes", "causal", "carry", "code", "code and carry"]
AWKWARD = [
    "empty", "one byte", "one letter", "NUL", "newlines", "special tokens", "text", "byte order mark", "random",
    "latin-1", "cut character", "lone continuation", "surrogates", "overlong", "text in noise", "zeros",
    "zeros in text", "one line", "other script", "combining marks", "spaces", "base64",
]  # fmt: skip


def test_every_awkward_input_is_tried(awkward: dict[str, bytes]) -> None:
    assert sorted(awkward) == sorted(AWKWARD)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("way", WAYS)
def test_awkward_bytes_come_back(codecs: dict[str, Codec], awkward: dict[str, bytes], way: str, name: str) -> None:
    data = awkward[name]
    blob = codecs[way].compress(data)
    assert codecs[way].decompress(blob) == data
    assert len(blob) <= len(data) * 1.001 + 64
    with codecs[way].open(BytesIO(blob)) as archive:
        assert archive.read(0, len(data) + 10) == data
        assert b"".join(archive.window(number) for number in range(archive.windows)) == data
        report = archive.report()
    assert report.file_bytes == len(blob) and report.plain_bytes == len(data)


def test_each_way_has_windows_of_its_kind(codecs: dict[str, Codec], text: bytes) -> None:
    for way in WAYS[1:]:
        report = codecs[way].list(codecs[way].compress(text))
        assert sum(report.windows[kind] for kind in Kind if kind.is_text) > 20
        assert (report.windows[Kind.CODED_FULL] > 0) == ("code" in way)


@pytest.mark.parametrize("way", WAYS)
def test_any_mixture_of_bytes_comes_back(codecs: dict[str, Codec], awkward: dict[str, bytes], way: str) -> None:
    draw = random.Random(way)
    parts = [data for data in awkward.values() if len(data) < 30_000]
    for _ in range(12):
        pieces = [_cut(draw, draw.choice(parts)) for _ in range(draw.randrange(1, 9))]
        data = b"".join(pieces)
        blob = codecs[way].compress(data)
        assert codecs[way].decompress(blob) == data
        assert len(blob) <= len(data) * 1.001 + 64
        start, length = draw.randrange(len(data) + 1), draw.randrange(3000)
        assert codecs[way].open(BytesIO(blob)).read(start, length) == data[start : start + length]


def _cut(draw: random.Random, data: bytes) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[start : start + draw.choice([1, 30, 400, 5000])]


class Trickle(RawIOBase):
    """A pipe: gives a few bytes at a time, cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)
        self._draw = random.Random(0)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._draw.randrange(1, 5000)))


class Sink:
    """Takes bytes and nothing else."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["empty", "text", "text in noise", "zeros in text", "random"])
def test_pipes_give_the_same_file(codecs: dict[str, Codec], awkward: dict[str, bytes], way: str, name: str) -> None:
    packed, plain, progress = Sink(), Sink(), []
    report = codecs[way].compress_stream(Trickle(awkward[name]), packed, progress.append)
    assert packed.data == codecs[way].compress(awkward[name])
    assert report.file_bytes == len(packed.data) and report.plain_bytes == sum(progress) == len(awkward[name])
    assert codecs[way].decompress_stream(Trickle(packed.data), plain) == len(awkward[name])
    assert plain.data == awkward[name]


def test_only_a_file_with_text_names_its_model(codec: Codec, awkward: dict[str, bytes]) -> None:
    for name in ("empty", "random", "zeros", "one line"):
        blob = codec.compress(awkward[name])
        assert Header.from_bytes(blob) == Header()
        assert Codec(None).decompress(blob) == awkward[name]
    late = codec.compress(awkward["random"] * 3 + awkward["text"])
    assert Header.from_bytes(late).model_id == codec.model_id


def test_the_wrong_model_is_refused_by_name_before_anything_is_decoded(
    codec: Codec, stand_in: Callable[..., Any], text: bytes
) -> None:
    blob = codec.compress(text)
    other = Codec(stand_in(context=40))
    for attempt in (
        lambda: other.decompress(blob),
        lambda: other.open(BytesIO(blob)),
        lambda: other.window(blob, 0),
        lambda: other.list(blob, estimate=True),
        lambda: other.salvage(blob),
        lambda: other.decompress_stream(BytesIO(blob), Sink()),
    ):
        with pytest.raises(WrongModel, match=f"{codec.model_id.hex()}.*{other.model_id.hex()}"):
            attempt()
    assert other.model.decoded == 0
    with pytest.raises(WrongModel, match="no model is given"):
        Codec(None).decompress(blob)


def test_an_unknown_default_says_which_release_brings_it(codec: Codec, text: bytes, monkeypatch: Any) -> None:
    release = registry.Release(codec.model_id, Path("nowhere"), (7, 3))
    with monkeypatch.context() as patch:
        patch.setattr("modeling_eem.codec.registry.released_models", lambda: [release])
        blob = codec.compress(text)
    assert Header.from_bytes(blob).release == (7, 3)
    assert codec.decompress(blob) == text
    with pytest.raises(WrongModel, match="install modeling-eem 7.3 or newer"):
        Codec.for_header(Header.from_bytes(blob))
    with pytest.raises(WrongModel, match=f"{codec.model_id.hex()}.*--model"):
        Codec.for_header(Header(False, codec.model_id))
    assert Codec.for_header(Header()).model is None


def test_an_installation_without_a_default_model_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(registry, "ASSETS", tmp_path)
    with pytest.raises(CodecError, match="no default codec model"):
        Codec.default()


def test_too_much_output_is_refused_unread(codec: Codec, text: bytes) -> None:
    blob = codec.compress(text)
    assert codec.decompress(blob, max_output=len(text)) == text
    decoded = codec.model.decoded
    with pytest.raises(CodecError, match="more than"):
        codec.decompress(blob, max_output=len(text) - 1)
    assert codec.model.decoded == decoded
    sink = Sink()
    with pytest.raises(CodecError, match="--max-output"):
        codec.decompress_stream(BytesIO(Codec(None).compress(bytes(10**6))), sink, max_output=100_000)
    assert len(sink.data) <= 100_000


def test_a_code_never_costs_more_than_none(codecs: dict[str, Codec], awkward: dict[str, bytes]) -> None:
    chose = 0
    for data in awkward.values():
        with_code = codecs["code"].compress_stream(BytesIO(data), Sink())
        without = codecs["causal"].compress_stream(BytesIO(data), Sink())
        assert with_code.file_bytes <= without.file_bytes
        coded = with_code.windows[Kind.CODED] + with_code.windows[Kind.CODED_FULL]
        assert (with_code.code_saved > 0) == (coded > 0) and without.code_saved is None
        if num_text := with_code.text_windows:
            assert f"{coded:,} of {num_text:,} text window" in with_code.note and "with a code" not in without.note
        chose += coded
    assert chose


def test_what_repeats_over_windows_goes_to_zstd_and_text_around_it_does_not(
    codec: Codec, awkward: dict[str, bytes], text: bytes
) -> None:
    data = text[:4000] + awkward["base64"][:5000] * 3 + text[4000:8000]
    report = codec.list(codec.compress(data))
    assert report.windows[Kind.TEXT_FULL] > 10 and report.windows[Kind.ZSTD] == 1
    assert report.file_bytes < 0.8 * len(Codec(None).compress(data))


def test_carried_context_pays(codecs: dict[str, Codec], stand_in: Callable[..., Any], text: bytes) -> None:
    """The model prefers tokens of its context, so the payloads of the same windows must be shorter with it."""
    carried = codecs["carry"].list(codecs["carry"].compress(text))
    halves = Codec(stand_in(context=66))  # windows of the same 65 tokens, each alone
    alone = halves.list(halves.compress(text))
    assert carried.payload_bytes.total() < alone.payload_bytes.total()


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_estimate_is_what_the_windows_take(codecs: dict[str, Codec], text: bytes, way: str) -> None:
    report = codecs[way].list(codecs[way].compress(text), estimate=True)
    text_kinds = [kind for kind in report.windows if kind.is_text]
    windows = sum(report.windows[kind] for kind in text_kinds)
    payload = sum(report.payload_bytes[kind] for kind in text_kinds)
    assert 0 <= payload - report.estimate_bits / 8 <= 5 * windows  # the stand-in's coder ends in up to 4 bytes
    assert any("estimate" in line for line in report.lines())


def test_an_estimate_comes_near_the_file(codec: Codec, text: bytes) -> None:
    estimate = codec.estimate(text)
    assert estimate.sampled_bytes == len(text)
    assert estimate.file_bytes == pytest.approx(len(codec.compress(text)), rel=0.05)
    assert estimate.seconds > 0
    part = codec.estimate(text * 4, sample=len(text))
    assert part.sampled_bytes <= len(text) and part.plain_bytes == 4 * len(text)
    assert part.file_bytes == pytest.approx(len(codec.compress(text * 4)), rel=0.4)  # slices of 656 bytes share less
    assert codec.estimate(b"").file_bytes < 64
    for size, sample in ((10, 5), (100, 15), (100, 0), (1, 0), (1000, 999)):
        assert codec.estimate(b"a" * size, sample).sampled_bytes <= sample


def test_an_estimate_joins_windows_as_the_file_does(codec: Codec) -> None:
    """Lines that repeat each other over many windows: zstd takes them in 64 KiB, and beats the model."""
    draw = random.Random(0)
    jobs = "".join(
        f"2026-11-30 12:{n // 60:02}:{n % 60:02} INFO worker {draw.randrange(8)}: job {7000 + n} was finished in "
        f"{draw.randrange(10, 99)} ms\n"
        for n in range(600)
    )
    assert codec.estimate(jobs.encode()).file_bytes == pytest.approx(len(codec.compress(jobs.encode())), rel=0.05)


def test_an_estimate_counts_the_time_of_bytes(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> tuple[Kind, bytes]:
        time.sleep(0.01)
        return pack_bytes(data)

    monkeypatch.setattr("modeling_eem.codec.window_encoder.pack_bytes", slow)
    noise = bytes(byte | 0x80 for byte in random.Random(0).randbytes(1 << 18))
    for each in (codec, Codec(None)):
        assert each.estimate(noise, sample=1 << 16).seconds >= 4 * 0.01  # a quarter of it, which is one window


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda codec: pickle.loads(pickle.dumps(codec))])
def test_a_copy_compresses_as_well(codec: Codec, copied: Callable[[Codec], Codec], text: bytes) -> None:
    """A tokenizer's JSON, and so its pickle, does not say that the names of special tokens are text."""
    data = b"A special <|endoftext|> in the text. " + text[:3000]
    assert copied(codec).compress(data) == codec.compress(data)


@pytest.mark.parametrize("context", [2, 3])
def test_carry_in_the_shortest_contexts(stand_in: Callable[..., Any], text: bytes, context: int) -> None:
    codec = Codec(stand_in(context=context), carry=True)
    assert codec.decompress(codec.compress(text[:500])) == text[:500]


def test_a_payload_that_does_not_end_as_it_should_is_damage(integer_model: Callable[[str], Any], text: bytes) -> None:
    """Its check sum is right, as in a file that someone else made."""
    codec = Codec(integer_model("flat"))
    header = codec._header(False)
    index, out = Index(), header.to_bytes()
    for number, payload in enumerate([codec.model.encode_windows([[5, 6, 7]])[0], b"\xff" * 40]):
        record = pack_record(header.check, number, Kind.TEXT, 3, payload)
        out += record
        index.add(len(record), b"abc")
    out += index.trailer(header)
    with pytest.raises(DamagedFile, match="window 1 is damaged"):
        codec.decompress(out)
    with pytest.raises(DamagedFile, match="window 1 is damaged"):
        codec.window(out, 1)


def test_bytes_put_between_two_windows_are_noted(codec: Codec, text: bytes) -> None:
    blob = codec.compress(text)
    layout = Layout(BytesIO(blob))
    entry, lengths = layout.plain_lengths(0)
    second = [at for at, _ in layout.heads(entry, len(lengths))][1]
    salvaged = codec.salvage(blob[:second] + b"???" + blob[second:])
    assert salvaged.data == text and not salvaged.is_whole
    assert any("3 bytes before window 1 belong to no window" in line for line in salvaged.lines())


def test_a_pushed_codec_is_what_a_folder_holds(codec: Codec, tmp_path: Path, monkeypatch: Any) -> None:
    uploads: list[tuple[str, list[str]]] = []

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **_: Any) -> str:
            uploads.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert codec.push_to_hub("someone/codec") == "url"
    assert uploads == [("someone/codec", ["README.md", "config.json", "stand_in"])]
    monkeypatch.setattr("modeling_eem.codec.codec._load", lambda folder: (codec.model, folder)[0])
    Codec(codec.model, carry=True).save_pretrained(tmp_path)
    loaded = Codec.from_pretrained(tmp_path)
    assert loaded.model is codec.model and loaded.carry


def test_trailing_bytes_are_an_error(codecs: dict[str, Codec], text: bytes) -> None:
    for way in ("bytes", "causal"):
        blob = codecs[way].compress(text)
        for extra in (b"\0", blob):
            with pytest.raises(DamagedFile, match="other bytes"):
                codecs[way].decompress_stream(BytesIO(blob + extra), Sink())
            with pytest.raises(DamagedFile):
                codecs[way].decompress(blob + extra)
