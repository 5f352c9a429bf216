"""Two at once in one checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from toy import checkout, plain


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
