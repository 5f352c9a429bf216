"""A reader's experiment never replaces a committed result: their own kernel writes to data/runs/mine."""

import nbformat
import pytest
import toy
from nbclient import NotebookClient

from sharpnb.lab import Record

CODE = """
import matplotlib.pyplot as plt
from sharpnb import lab
nb = lab.start("01_mine")
nb.record("numbers", {"x": 2.0})
nb.claims([lab.Claim("c", (1.0, 2.0, 3.0))])
figure, ax = plt.subplots()
ax.plot([0, 1], [0, 2])
nb.figure(figure, "line", alt="A line that rises from nought to two, drawn for this test.", caption="c",
          data={"x": [0, 1]})
"""
KINDS = ("records/01_mine/quick/numbers.json", "records/01_mine/quick/claims.json", "figures/01_mine/line.csv")


def made_by_a_kernel(root, monkeypatch, **around) -> tuple[set[str], str]:
    """Return the results that a kernel has written below ``root``, and what it printed first."""
    for name in ("SHARPNB_KEEP", "SHARPNB_CHECK"):
        monkeypatch.delenv(name, raising=False)
    toy.listed(root, "c")
    for name, value in {"SHARPNB_ROOT": str(root), "IPYTHONDIR": str(root / "ipython"), **around}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    NotebookClient(notebook, kernel_name="python3").execute()
    first = notebook.cells[0].outputs[0].get("text", "")
    found = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.suffix in {".json", ".csv"}}
    return {name for name in found if "01_mine" in name}, first


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """A checkout with one committed record."""
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return Record("01_mine", "numbers", "quick", {"x": 1.0}).save()


def test_a_readers_kernel_writes_to_mine_and_says_so(committed, tmp_path, monkeypatch):
    before = committed.read_bytes()
    made, said = made_by_a_kernel(tmp_path, monkeypatch)
    mine = {f"data/runs/mine/{'data/' if name.startswith('records') else ''}{name}" for name in KINDS}
    assert made == {*mine, "data/records/01_mine/quick/numbers.json"}
    assert committed.read_bytes() == before and "data/runs/mine" in said


@pytest.mark.parametrize("keep", ["0", "1"])
def test_negative_control_a_run_renews_the_committed_results(keep, committed, tmp_path, monkeypatch):
    made, said = made_by_a_kernel(tmp_path, monkeypatch, SHARPNB_KEEP=keep)
    assert made == {f"{'data/' if name.startswith('records') else ''}{name}" for name in KINDS}
    assert Record.load(committed).values == {"x": 2.0} and "mine" not in said
