"""Blocks that are freed and asked for again must not be faulted in anew."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from sharpnb.memory import keep_freed_memory
if len(sys.argv) > 1:
    keep_freed_memory()
import torch
torch.set_num_threads(1)
first, second = torch.nn.Conv2d(32, 256, 3, groups=32), torch.nn.Conv2d(256, 512, 3, groups=32)
x = torch.randn(64, 32, 8, 8).contiguous(memory_format=torch.channels_last)
def step():
    second(first(x).relu()).relu().mean().backward()
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(environment, *flag):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return int(subprocess.run([sys.executable, "-c", PROGRAM, *flag], capture_output=True, text=True, check=True,
                              env=clean | environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc's allocator")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=["adapts", "may not adapt"])
def test_freed_blocks_are_used_again_and_by_default_they_are_not(environment):
    default = page_faults(environment)
    if default < 1000:
        pytest.skip(f"{default} page faults by default: this system's pages are large, or its allocator keeps them")
    assert 4 * page_faults(environment, "keep") < default
