"""Every unit test draws the same random numbers wherever and beside whatever it runs."""

import os
import random
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch

from sharpnb import cli

torch.set_num_threads(1)  # as everywhere here, also without make: two threads beside other work were nine times slower
mpl.rcdefaults()  # whatever a matplotlibrc in the working folder says


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    # Another SHARPNB_TEST_SEED finds the test whose bound holds for some draws alone.
    seed = int(os.environ.get("SHARPNB_TEST_SEED", 0))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # Where one test compiled something, the first step of every optimizer after it would look for hidden layers.
    if compiled := sys.modules.get("torch._dynamo.utils"):
        compiled.counters.clear()


@pytest.fixture
def sharpnb(monkeypatch, capsys):
    """Call the command in this process: return its exit status, what it said, and what to standard error."""
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sharpnb", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make an empty folder the project, in which results are neither compared nor kept."""
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    for name in ("SHARPNB_CHECK", "SHARPNB_KEEP"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
