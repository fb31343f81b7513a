"""That memory which a step frees is there for the next."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from modeling_eem.training import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(6):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(4 << 20) for _ in range(8)]  # 16 MiB each
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_pages_are_fetched_once() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "default")
    }
    if faults["default"] < 10_000:
        pytest.skip("another allocator than glibc's, or pages of megabytes")
    assert faults["keep"] < faults["default"] / 10
