"""A library call leaves the user's process as it was: allocator, garbage collector, threads, fork server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, gc, json, multiprocessing.forkserver as server, sys
import torch
from torch import nn
from sharpnb import lab
from sharpnb.curvature import HessianOperator
from sharpnb.many.engine import Nets
from sharpnb.landscape import Plane, surface

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def mapped():
    '''Whether the C library still asks the system for a block of 24 MB, as by default; None if it cannot tell.'''
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(24 * 2**20))  # not freed: glibc would learn from that
    return libc.mallinfo2().hblks > before

def state():
    return {"threads": torch.get_num_threads(), "frozen": gc.get_freeze_count(),
            "collects": [gc.isenabled(), *gc.get_threshold()],
            "fork server": [*server._forkserver._preload_modules], "mapped": mapped()}

def main(folder):
    torch.set_num_threads(3)
    before, seen = state(), {}
    data = lab.load_data("digits", train_size=40)
    net = lab.models.mlp((64, 4, 10))
    calls = {
        "start": lambda: lab.start("n"),
        "operator": lambda: HessianOperator(net, nn.functional.cross_entropy, data.train),
        "surface": lambda: surface(net, Plane.random(net), data.train, size=3),
        "train_many": lambda: lab.train_many([{"rule": "sgd", "lr": 0.1}], data, lambda seed: net, steps=1),
        "rows": lambda: Nets([0], data, lambda seed: net),
        "sweep": lambda: lab.sweep({"rule": "sgd", "lr": [0.1, 0.2]}, {"name": "digits", "train_size": 40},
                                   {"name": "mlp", "sizes": (64, 4, 10)}, steps=1, shard_size=1, jobs=2, folder=folder),
    }
    for name, call in calls.items():
        call()
        seen[name] = state()
    print(json.dumps({"before": before, "seen": seen}))

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "user.py").write_text(PROGRAM)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, str(folder / "user.py"), str(folder / "kept")], capture_output=True,
                          text=True, env=clean)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", ["start", "operator", "surface", "train_many", "rows", "sweep"])
def test_a_call_leaves_the_process_as_it_was(states, call):
    assert states["seen"][call] == states["before"]
