"""Damaged files: none decodes wrongly in silence, none hangs, and every undamaged window is salvaged.

EEM_MUTATIONS files in all (default 800); the record's run sets 10,000.
"""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from unittest.mock import patch

import pytest

from modeling_eem.codec import Codec, CodecError
from modeling_eem.codec.container import RUN, Header, Kind, parse_record_head

MUTATIONS = int(os.environ.get("EEM_MUTATIONS", "800"))
SECONDS = 20  # for one file of a few kB; a busy machine included


@dataclass
class Sample:
    """A file, its plain bytes by window and where in the file each window's record is."""

    codec: Codec
    data: bytes
    blob: bytes
    windows: list[bytes]
    places: list[range]


def _sample(codec: Codec, data: bytes) -> Sample:
    blob = codec.compress(data)
    with codec.open(BytesIO(blob)) as archive:
        windows = [archive.window(number) for number in range(archive.windows)]
    places, at = [], len(Header.from_bytes(blob).to_bytes())
    for _ in windows:
        head = parse_record_head(blob, at)
        places.append(range(at, at + head.size + head.length))
        at = places[-1].stop
    return Sample(codec, data, blob, windows, places)


@pytest.fixture(scope="module")
def samples(stand_in: Callable[..., Any], awkward: dict[str, bytes]) -> list[Sample]:
    """Small windows, so that many damaged files take little time; many more than bytes alone would be worth."""
    text, noise = awkward["text"], awkward["random"]
    causal, eem = stand_in(context=40), stand_in(context=40, has_code=True)
    with patch("modeling_eem.codec.window_encoder._mended", lambda parts: parts):
        return [
            _sample(Codec(causal), text[:3000] + noise + text[3000:4000]),
            _sample(Codec(causal, carry=True), text[:3000]),
            _sample(Codec(eem, carry=True), text[:1000] + noise[:700] + text[1000:2000]),
            _sample(Codec(None), noise * 60),
            _sample(Codec(eem), text[:300]),
            _sample(Codec(causal), text[:40]),
            _sample(Codec(causal), b""),
        ]


def test_the_samples_have_windows_of_every_kind(samples: list[Sample]) -> None:
    reports = [sample.codec.list(sample.blob) for sample in samples]
    assert {kind for report in reports for kind in report.windows} == set(Kind) - {Kind.END}
    assert sum(len(sample.windows) > 64 for sample in samples) >= 1


Mutation = Callable[[random.Random, Sample], tuple[bytes, set[int]]]
"""Gives the damaged file and the numbers of the windows whose bytes it changed."""


def _touched(sample: Sample, damaged: range) -> set[int]:
    touches = (n for n, place in enumerate(sample.places) if place.start < damaged.stop and damaged.start < place.stop)
    return set(touches)


def flip_bits(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    blob, touched = bytearray(sample.blob), set()
    for at in draw.sample(range(len(blob)), k=min(draw.choice([1, 1, 2, 8]), len(blob))):
        blob[at] ^= 1 << draw.randrange(8)
        touched |= _touched(sample, range(at, at + 1))
    return bytes(blob), touched


def overwrite(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    at = draw.randrange(len(sample.blob))
    length = min(draw.choice([1, 4, 60, 900]), len(sample.blob) - at)
    noise = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])
    return sample.blob[:at] + noise + sample.blob[at + length :], _touched(sample, range(at, at + length))


def cut_end(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    at = draw.randrange(len(sample.blob))
    return sample.blob[:at], _touched(sample, range(at, len(sample.blob)))


def take_out(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    at = draw.randrange(len(sample.blob))
    length = draw.choice([1, 1, 5, 300])
    return sample.blob[:at] + sample.blob[at + length :], _touched(sample, range(at, at + length))


def put_in(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    at = draw.randrange(len(sample.blob) + 1)
    noise = draw.randbytes(draw.choice([1, 1, 5, 300]))
    inside = {n for n, place in enumerate(sample.places) if place.start < at < place.stop}
    return sample.blob[:at] + noise + sample.blob[at:], inside


def trail(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    return sample.blob + draw.choice([b"\0", draw.randbytes(50), sample.blob]), set()


def swap_windows(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    if len(sample.places) < 2:
        return flip_bits(draw, sample)
    one, two = (sample.places[n] for n in sorted(draw.sample(range(len(sample.places)), 2)))
    blob = sample.blob
    middle = blob[two.start : two.stop] + blob[one.stop : two.start] + blob[one.start : one.stop]
    return blob[: one.start] + middle + blob[two.stop :], set()


def repeat_window(draw: random.Random, sample: Sample) -> tuple[bytes, set[int]]:
    if not sample.places:
        return flip_bits(draw, sample)
    place = draw.choice(sample.places)
    return sample.blob[: place.stop] + sample.blob[place.start :], set()


MUTATION_KINDS = [flip_bits, overwrite, cut_end, take_out, put_in, trail, swap_windows, repeat_window]


def _needs(sample: Sample, number: int) -> set[int]:
    """Windows that a window may need: itself, and where windows carry those before it since the fresh start."""
    if not Header.from_bytes(sample.blob).carry:
        return {number}
    return set(range(number - number % RUN, number + 1))


@pytest.mark.parametrize("mutate", MUTATION_KINDS)
def test_no_damage_passes_and_no_undamaged_window_is_lost(samples: list[Sample], mutate: Mutation) -> None:
    draw = random.Random(mutate.__name__)
    for _ in range(-(-MUTATIONS // len(MUTATION_KINDS))):
        sample = draw.choice(samples)
        blob, touched = mutate(draw, sample)
        begin = time.monotonic()
        if blob == sample.blob:
            continue
        _check_refused(sample, blob)
        _check_salvage(sample, blob, touched)
        assert time.monotonic() - begin < SECONDS


def _check_refused(sample: Sample, blob: bytes) -> None:
    with pytest.raises(CodecError):
        sample.codec.decompress(blob)
    out = BytesIO()
    with pytest.raises(CodecError):
        sample.codec.decompress_stream(BytesIO(blob), out)
    assert sample.data.startswith(out.getvalue())
    try:
        with sample.codec.open(BytesIO(blob)) as archive:
            for start in range(0, len(sample.data), 701):
                assert archive.read(start, 20) == sample.data[start : start + 20]
    except CodecError:
        pass


def _check_salvage(sample: Sample, blob: bytes, touched: set[int]) -> None:
    try:
        result = sample.codec.salvage(blob)
    except CodecError as error:  # nothing at all says what file this was
        assert "header" in str(error)
        assert not [n for n in range(len(sample.windows)) if n not in touched], "windows were there"
        return
    for number, plain in result.windows.items():
        assert plain == sample.windows[number]
    for number in range(len(sample.windows)):
        if not _needs(sample, number) & touched:
            assert number in result.windows, f"window {number} is lost; damaged: {touched}"
    missing = set(range(len(sample.windows))) - result.windows.keys()
    reported = {n for lost in result.lost for n in range(lost.first, lost.first + lost.count)}
    assert missing == reported or not result.end_is_known
    assert missing <= touched or Header.from_bytes(sample.blob).carry
