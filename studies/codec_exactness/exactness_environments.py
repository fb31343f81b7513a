"""Instruction sets and library settings in which the codec must write and read the same bytes.

Each is a set of environment variables for a process of its own; a lesser processor is had by what libraries may use.
"""

from pathlib import Path

# Of PyTorch's products, which the plain decoder runs on.
PLAIN = {
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX-512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "bfloat16 products": {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"},
    "MKL, SSE4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "MKL_CBWR": "COMPATIBLE"},
}
# Of the compiled decoder, as numba compiles it.
FAST = {
    "SSE2": {"NUMBA_CPU_NAME": "generic"},
    "AVX2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+fma"},
    "AVX-512, no byte products": {
        "NUMBA_CPU_NAME": "skylake-avx512",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512dq",
    },
    "all this processor has": {},
}


# What a processor must have for a variable's value to mean anything; libraries fall back in silence.
_NEEDS = {"avx2": "avx2", "AVX2": "avx2", "avx512": "avx512bw", "AVX512_CORE": "avx512bw", "BF16": "avx512_bf16"}


def can_run(environment: dict[str, str]) -> bool:
    """Whether this processor has what the environment asks libraries, or numba, to use."""
    file = Path("/proc/cpuinfo")
    flags = set(file.read_text().split()) if file.exists() else set()
    wanted = set(environment.get("NUMBA_CPU_FEATURES", "").replace("+", "").replace("bmi,", "bmi1,").split(",")) - {""}
    wanted |= {_NEEDS[value] for value in environment.values() if value in _NEEDS}
    return wanted <= flags
