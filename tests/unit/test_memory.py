"""Blocks that are freed and asked for again must not be faulted in anew; modules are not searched for garbage."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from sharpnb.memory import keep_freed_memory
import torch
torch.set_num_threads(1)
first, second = torch.nn.Conv2d(32, 256, 3, groups=32), torch.nn.Conv2d(256, 512, 3, groups=32)
x = torch.randn(64, 32, 8, 8).contiguous(memory_format=torch.channels_last)
def step():
    second(first(x).relu()).relu().mean().backward()
def faults():
    for _ in range(10):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = faults()
keep_freed_memory()
print(default, faults())
"""


def page_faults(environment):
    """Return the page faults of ten steps before and after freed memory is kept."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=clean | environment)
    return map(int, done.stdout.split())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc's allocator")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=["adapts", "may not adapt"])
def test_freed_blocks_are_used_again_and_by_default_they_are_not(environment):
    default, kept = page_faults(environment)
    if default < 1000:
        pytest.skip(f"{default} page faults by default: this system's pages are large, or its allocator keeps them")
    assert 4 * kept < default


SEARCHED = """
import gc, torch
from sharpnb.memory import pass_over_modules
before = len(gc.get_objects())
pass_over_modules()
after = len(gc.get_objects())
class Ring: pass
ring = Ring(); ring.own = ring; del ring
frozen, found = gc.get_freeze_count(), gc.collect()
later = [Ring() for _ in range(1000)]
pass_over_modules()
print(before, after, found, gc.get_freeze_count() - frozen)
"""


def test_the_collector_passes_over_modules_once_and_still_finds_what_comes_after():
    done = subprocess.run([sys.executable, "-c", SEARCHED], capture_output=True, text=True, check=True)
    before, after, found, more = map(int, done.stdout.split())
    assert before > 20_000 and after < before / 10
    assert found >= 1  # the ring
    assert more < 1000  # a second call sets nothing aside
