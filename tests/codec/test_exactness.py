"""Payloads and tokens are the same whatever the instruction set, the threads and the number of windows at once."""

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_eem.codec import IntegerModel

MakeModel = Callable[[str], IntegerModel]
WORKER = Path(__file__).with_name("exactness_worker.py")

# Of PyTorch's products, which the plain decoder runs on.
TORCH = [
    {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa}
    for capability, isa in zip(("default", "avx2", "avx512"), ("SSE41", "AVX2", "AVX512_CORE"))
] + [{"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "MKL_CBWR": "COMPATIBLE"}]
# Of the compiled decoder: what numba may use. The first has no vectors beyond SSE2, the second none of 512 bits, the
# third no byte products; the last is this machine.
NUMBA = [
    {"NUMBA_CPU_NAME": "generic"},
    {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+fma"},
    {
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512dq",
    },
    {},
]
HAS_NUMBA = importlib.util.find_spec("numba") is not None


def payload_hash(folder: Path, decoder: str, environment: dict[str, str], at_once: int, threads: int) -> str:
    command = [sys.executable, str(WORKER), str(folder), decoder, str(at_once), str(threads)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def can_run(environment: dict[str, str]) -> bool:
    """Whether this machine has what the environment asks numba to use."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    wanted = environment.get("NUMBA_CPU_FEATURES", "").replace("+", "").split(",")
    return all(feature in flags for feature in wanted)


def test_two_environments_write_the_same(integer_model: MakeModel, tmp_path: Path) -> None:
    integer_model("taps").save_pretrained(tmp_path)
    hashes = {
        payload_hash(tmp_path, "Plain", TORCH[0], at_once=7, threads=1),
        payload_hash(tmp_path, "Fast" if HAS_NUMBA else "Plain", {}, at_once=64, threads=2),
    }
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "taps", "odd"])
def test_every_environment_writes_the_same(integer_model: MakeModel, kind: str, tmp_path: Path) -> None:
    integer_model(kind).save_pretrained(tmp_path)
    cells = list(itertools.product(["Plain"], TORCH, (64,), (1, 2)))
    cells += list(itertools.product(["Plain"], TORCH[:1], (1, 7), (1, 2)))
    if HAS_NUMBA:
        cells += list(itertools.product(["Fast"], filter(can_run, NUMBA), (1, 7, 64), (1, 2)))
    hashes = {
        (name, tuple(cell.items()), *rest): payload_hash(tmp_path, name, cell, *rest) for name, cell, *rest in cells
    }
    assert len(set(hashes.values())) == 1, hashes
