"""Two at once in one checkout or in one folder of a sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pandas as pd
from harm import FORK, chances
from toy import checkout, plain

from sharpnb import lab


def printed(root) -> str:
    return "".join(json.loads((root / "data/runs/quick/01_toy.ipynb").read_text())["cells"][-1]["outputs"][0]["text"])


def test_two_runs(tmp_path):
    """One works, the other names it and stops; nothing is executed twice."""
    body = ("import time\nfrom pathlib import Path\nwith open('count', 'a') as file:\n    file.write('x')\n"
            "while not Path('go').exists():\n    time.sleep(0.05)\nprint('whole')")
    root = checkout(tmp_path, {"01_toy": plain("01", body)})
    both = [subprocess.Popen([sys.executable, "-m", "sharpnb.cli", "run"], stdout=subprocess.DEVNULL,
                             env={**os.environ, "SHARPNB_ROOT": str(root)}, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    deadline = time.monotonic() + 120
    while all(process.poll() is None for process in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    (root / "data/runs/quick/go").touch()  # one has been refused: let the other finish
    said = {process.communicate(timeout=120)[1]: process.returncode for process in both}
    assert sorted(said.values()) == [0, 2]
    assert all("Another run is at work in this checkout: process" in text for text, status in said.items() if status)
    assert printed(root) == "whole\n" and (root / "data/runs/quick/count").read_text() == "x"


def test_two_sweeps(tmp_path):
    """In one folder: both end, and the table is the one of an undisturbed sweep."""
    def table(folder):
        return lab.sweep({"rule": "sgd", "lr": [0.05, 0.1, 0.2], "seed": [0, 1]}, {"name": "digits", "train_size": 60},
                         {"name": "mlp", "sizes": (64, 4, 10)}, steps=10, batch_size=20, dtype="float64", device="cpu",
                         progress=False, shard_size=1, folder=folder)

    whole = table(tmp_path / "whole")
    for number, _ in enumerate(chances("two sweeps in a folder", 2)):
        folder = tmp_path / str(number)
        both = [FORK.Process(target=table, args=(folder,)) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join()
        assert [each.exitcode for each in both] == [0, 0]
        pd.testing.assert_frame_equal(table(folder), whole, check_exact=True)
        assert len(list(folder.iterdir())) == len(list((tmp_path / "whole").iterdir()))
