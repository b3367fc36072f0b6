"""What `patchconvnet.hardware` tells the machine."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from patchconvnet.hardware import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def step():
    torch.cat([torch.ones(20_000_000) for _ in range(3)])  # 80 MB each, more than glibc keeps by itself

for _ in range(20):  # two to six steps until the holes between small blocks are large enough
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_after_a_few_steps_no_more_is_asked_of_the_system() -> None:
    assert page_faults("keep") < 1000 < page_faults("leave")
