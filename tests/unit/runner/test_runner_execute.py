"""The runner at work on real kernels."""

import json

import pytest
from toy import checkout, plain

from sharpnb import paths
from sharpnb.runner import execute, plan, run

SHOW = """
import os
from pathlib import Path
from sharpnb import here
folder = Path(here.__file__).parents[1] / "figures" / "01_a"
folder.mkdir(parents=True, exist_ok=True)
(folder / "path.png").write_text("drawn")
environment = [os.environ[name] for name in ("SHARPNB_CHECK", "SHARPNB_KEEP", "MALLOC_TRIM_THRESHOLD_")]
print(seed, here.value, os.environ["OMP_NUM_THREADS"], Path.cwd().name, environment)
"""


class Log(execute.Watcher):
    """A watcher that remembers."""

    def __init__(self):
        self.cells, self.order = [], []

    def cell(self, name, number, total):
        self.cells.append((name, number, total))

    def ended(self, result):
        self.order.append(result.name)


def outputs(file) -> str:
    cells = json.loads(file.read_text())["cells"]
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "ein Ort mit {Klammern} und ü"
    monkeypatch.setenv("SHARPNB_ROOT", str(root))
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    notebooks = {
        "00_index": plain("00", "print('last')", sharpnb={"after": "all"}),
        "01_a": plain("01", SHOW),
        "02_bad": plain("02", "def fails():\n    return 1 / 0\nprint('before')\nfails()"),
        "03_dies": plain("03", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    }
    return checkout(root, notebooks, {"__init__.py": "", "here.py": "value = 'own source'\n"})


def test_a_run_from_end_to_end(root, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('welcome')\nprint('[1]')")  # no event of a worker's
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # Dask sets it for its workers, and leaves it
    log = Log()
    ended = run(["0", "1", "2", "3"], jobs=4, parameters={"seed": 5}, watcher=log)
    results = {result.name: result for result in ended}
    assert [result.outcome for result in results.values()] == ["done", "failed", "kernel died", "done"]
    assert log.order[-1] == "00_index"
    assert [cell for cell in log.cells if cell[0] == "01_a"] == [("01_a", n, 3) for n in (1, 2, 3)]
    copy = results["01_a"].kept
    assert copy == paths.runs("quick") / "01_a.ipynb"
    assert outputs(copy) == "5 own source 1 quick ['', '1', '67108864']\n"
    assert results["01_a"].renewed == ("figures/01_a/path.png",) and results["00_index"].renewed == ()

    bad = results["02_bad"]
    assert "ZeroDivisionError" in bad.detail and "fails" in bad.detail
    assert outputs(bad.kept) == "before\n" and bad.kept.name == "02_bad.failed.ipynb"
    assert "want of memory" in results["03_dies"].detail and "cell 3 of 3" in results["03_dies"].detail

    steps = {step.name: step for step in plan(given={"seed": 5})}
    assert steps["01_a"].why == ()
    assert list(steps["01_a"].last["wrote"]) == ["figures/01_a/path.png"]
    assert steps["02_bad"].why == ("its last run failed or was interrupted",)
    assert not list(root.rglob("*partial*"))

    (root / "figures" / "01_a" / "path.png").write_text("another")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")  # the user's own choice stays
    (again,) = run(["1"], update=True)
    assert again.renewed == ("figures/01_a/path.png",) and outputs(again.kept).endswith(" notebooks ['', '0', '7']\n")


def test_update_stores_the_outputs_in_the_committed_notebook_once(root):
    source = root / "notebooks" / "00_index.ipynb"
    before = json.loads(source.read_text())
    leftover = paths.records("00_index", "quick") / ".claims.json.x1.partial"
    paths.write_whole(leftover, "{")  # of a killed write
    assert [result.outcome for result in run(["0"], update=True)] == ["done"] and not leftover.exists()
    after = json.loads(source.read_text())
    assert outputs(source) == "last\n"
    assert [cell["source"] for cell in after["cells"]] == [cell["source"].splitlines(True) for cell in before["cells"]]
    assert "papermill" not in source.read_text()
    assert [result.outcome for result in run(["0"], update=True)] == ["up to date"]

    after["cells"][0]["source"] = "# A better title"
    source.write_text(json.dumps(after))
    assert plan(["0"], update=True)[0].why == ()
    after["cells"][2]["outputs"] = []
    source.write_text(json.dumps(after))
    assert plan(["0"], update=True)[0].why == ("its stored outputs are not those of the last run",)


FORCED = """
import os
from pathlib import Path
pieces = Path.cwd() / "pieces" / "05_forced"
print(os.environ["SHARPNB_FORCE"], sorted(file.name for file in pieces.glob("*")))
pieces.mkdir(parents=True, exist_ok=True)
(pieces / "new").touch()
if Path(FAILS).exists():
    raise RuntimeError("killed")
"""


def test_force_makes_pieces_again_once_and_an_interrupted_run_goes_on_with_its_own(root, tmp_path):
    fails = tmp_path / "fails"
    file = root / "notebooks" / "05_forced.ipynb"
    file.write_text(json.dumps(plain("05", FORCED.replace("FAILS", repr(str(fails))))))
    old = paths.runs("quick") / "pieces" / "05_forced" / "old"
    paths.write_whole(old, "")
    assert outputs(run(["5"])[0].kept) == " ['old']\n"
    fails.touch()
    (killed,) = run(["5"], force=True)
    assert killed.outcome == "failed" and outputs(killed.kept) == "1 []\n"
    fails.unlink()
    assert outputs(run(["5"])[0].kept) == "1 ['new']\n", "goes on: finished records are not read back, its pieces are"
    assert run(["5"])[0].outcome == "up to date"
    assert outputs(run(["5"], force=True)[0].kept) == "1 []\n"


EDIT = """
import json
from pathlib import Path
file = Path("05_edited.ipynb")
content = json.loads(file.read_text())
content["cells"][{cell}]["source"] = {text!r}
file.write_text(json.dumps(content))
print("ran")
"""


@pytest.mark.parametrize(("cell", "text", "outcome"), [
    (0, "# 05 · Written meanwhile", "done"), (2, "print('another')", "failed")])
def test_what_a_maintainer_writes_while_a_notebook_runs_is_kept(root, cell, text, outcome):
    file = root / "notebooks" / "05_edited.ipynb"
    file.write_text(json.dumps(plain("05", EDIT.format(cell=cell, text=text))))
    (result,) = run(["5"], update=True)
    assert result.outcome == outcome
    assert "".join(json.loads(file.read_text())["cells"][cell]["source"]) == text
    assert outputs(file) == ("ran\n" if outcome == "done" else "")
    assert ("edited while it ran" in result.detail) == (outcome == "failed")
    assert bool(plan(["5"], update=True)[0].why) == (outcome == "failed"), "what was not stored is made again"


def test_a_cell_that_hangs_is_ended_and_kept(root, monkeypatch):
    monkeypatch.setattr(execute, "CELL_LIMIT", 3)
    (root / "notebooks" / "04_slow.ipynb").write_text(json.dumps(plain("04", "import time\ntime.sleep(600)")))
    (result,) = run(["4"])
    assert result.outcome == "failed" and "timed out" in result.detail and "time.sleep(600)" in result.detail
    assert result.kept == paths.runs("quick") / "04_slow.failed.ipynb"
