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


GIVING_BACK = """
import torch
from patchconvnet.hardware import give_back_freed_memory, keep_freed_memory

def megabytes():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

keep_freed_memory()
small = []
for _ in range(50):  # 8 MB each, with something behind that stays
    block = torch.ones(2_000_000)
    small.append((torch.ones(100), block))
full = megabytes()
small = [(kept, None) for kept, _ in small]
block = None
freed = megabytes()
give_back_freed_memory()
print(full, freed, megabytes())
"""


def page_faults(word: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, word], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_is_kept_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", GIVING_BACK], check=True, capture_output=True, text=True)
    full, freed, given_back = (float(each) for each in done.stdout.split())
    assert full - freed < 50  # 400 are free, and kept
    assert full - given_back > 350


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_after_a_few_steps_no_more_is_asked_of_the_system() -> None:
    assert page_faults("keep") < 1000 < page_faults("leave")
