"""A user's profile against the kernels of `sharpnb run`; tests/notebooks has the same for those of the gate."""

import json

import pytest
from toy import checkout, plain, profile

from sharpnb.runner import run, surroundings

LOOK = """
import datetime, locale, os, shutil, sys
import matplotlib as mpl
import numpy as np
import pandas as pd
print("size", mpl.rcParams["font.size"], mpl.get_backend())
print("zone", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).astimezone().isoformat())
print("text", locale.getpreferredencoding(), sys.flags.utf8_mode, pd.Series([1.23456]).to_list(), np.array([1.23456]))
print("table", pd.get_option("display.precision"), shutil.get_terminal_size().columns, "MINE" in globals())
print("says", [name for name in ("LANGUAGE", "NO_COLOR", "PYTHONSTARTUP") if name in os.environ])
assert sys.flags.optimize == 0 and not sys.warnoptions
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path / "root"))
    return checkout(tmp_path / "root", {"01_look": plain("01", LOOK)}, {"__init__.py": ""})


def seen(root) -> str:
    """Return what the notebook has seen of its surroundings."""
    (result,) = run(["1"], force=True)
    assert result.outcome == "done", result.detail
    cells = json.loads((root / "data" / "runs" / "quick" / "01_look.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def test_a_run_sees_nothing_of_a_users_profile(root, tmp_path, monkeypatch):
    for name in surroundings.REMOVED:
        monkeypatch.delenv(name, raising=False)
    expected = seen(root)
    assert expected.splitlines() == [
        "size 10.0 module://matplotlib_inline.backend_inline", "zone 2020-01-01T00:00:00+00:00",
        "text utf-8 1 [1.23456] [1.23456]", "table 6 80 False", "says []",
    ]
    for name, value in profile(tmp_path / "user").items():
        monkeypatch.setenv(name, value)
    assert seen(root) == expected


def test_negative_control_without_it_a_profile_is_seen(root, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "without_profile", lambda environment, root: dict(environment))
    for name, value in profile(tmp_path / "user").items():
        if name not in ("PYTHONWARNINGS", "PYTHONOPTIMIZE", "JUPYTER_PATH"):
            monkeypatch.setenv(name, value)
    text = seen(root)
    assert all(word in text for word in ("size 30.0 svg", "+05:45", "[1.2]", "table 1", "True", "'LANGUAGE'")), text
