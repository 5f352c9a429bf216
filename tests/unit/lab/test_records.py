"""Records and their provenance, and what else a notebook's context does."""

import json
import math
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from toy import checkout, plain

from sharpnb import lab, paths, sources
from sharpnb.lab import Record, RecordMismatch, records
from sharpnb.lab.records import first_difference

ALT = "A line that rises from zero to one as the number of steps grows."
pytestmark = pytest.mark.usefixtures("project")


def test_a_record_comes_back_as_it_was_and_knows_where_it_is_from():
    nb = lab.start("07_x", seed=3)
    path = nb.record("r", {"a": [1.0, float("nan")], "t": torch.tensor([1, 2]), "s": "text", "none": None})
    back = Record.load(path)
    assert path == paths.records("07_x", "quick") / "r.json"
    assert back.values["t"] == [1, 2] and math.isnan(back.values["a"][1]) and back.values["none"] is None
    assert back.provenance["parameters"]["seed"] == 3
    assert back.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert back.provenance["commit"] is None  # no checkout here


def _git(*arguments):
    person = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *person, *arguments], check=True, capture_output=True)


@pytest.fixture
def history(project, monkeypatch):
    """A checkout whose history has one commit."""
    monkeypatch.delenv("SHARPNB_COMMIT", raising=False)
    monkeypatch.chdir(checkout(project, {"n": plain("n", "print(1)")}, {"rules.py": "a = 1\n"}))
    _git("init")
    _git("add", ".")
    _git("commit", "-m", "first")
    return project


def _commit_of(nb="n"):
    return records.provenance(nb, {}, torch.device("cpu"), {}, 0.0)["commit"]


def test_a_commit_is_clean_while_only_texts_and_outputs_differ_from_it(history):
    head = _commit_of()
    assert len(head) == 12
    file = history / "notebooks" / "n.ipynb"
    content = json.loads(file.read_text())
    content["cells"][2]["outputs"], content["cells"][0]["source"] = [], "# Another title"
    file.write_text(json.dumps(content))
    (history / "data").mkdir()
    (history / "data" / "result.json").write_text("{}")
    assert _commit_of() == head and _commit_of("unknown") == head


@pytest.mark.parametrize(("where", "notebook"), [
    ("notebooks/n.ipynb", "n"), ("sharpnb/rules.py", "n"), ("notebooks/studies/n.py", "n"), ("notebooks/m.ipynb", "m")])
def test_a_commit_is_marked_where_code_differs_from_it(history, where, notebook):
    code = (history / "notebooks" / "n.ipynb").read_text().replace("print(1)", "print(2)")
    paths.write_whole(history / where, code if where.endswith(".ipynb") else "a = 2\n")
    assert _commit_of(notebook).endswith("+") and _commit_of().endswith("+") == (notebook == "n")


@pytest.mark.parametrize(("before", "keep", "renewed"), [
    ({"commit": "abc+"}, "0", True), ({"commit": None}, "0", True), ({"sources": ""}, "0", True),
    ({"commit": "abc"}, "0", False), ({"commit": "abc+"}, "1", False), ({"commit": "abc+"}, "", False)])
def test_update_renews_a_provenance_without_its_sources_or_commit(history, monkeypatch, before, keep, renewed):
    path = lab.start("n").record("r", {"a": 1.0})
    content = json.loads(path.read_text())
    assert content["provenance"]["sources"] == sources.of_notebook("n")
    content["provenance"] |= before
    del content["digest"]
    path.write_text(json.dumps(content))
    monkeypatch.setenv("SHARPNB_KEEP", keep)
    lab.start("n").record("r", {"a": 1.0})
    now = {"commit": _commit_of(), "sources": sources.of_notebook("n")}
    assert Record.load(path).provenance.items() >= (now if renewed else before).items()


@pytest.mark.parametrize(("keep", "values", "seed", "stays"), [
    ("", {"a": 1.0, "verdict": "yes"}, 9, True), ("", {"a": 1.0 + 1e-15, "verdict": "yes"}, 9, False),
    ("", {"a": 1.009, "verdict": "yes"}, 0, True), ("1", {"a": 1.009, "verdict": "yes"}, 0, True),
    ("0", {"a": 1.009, "verdict": "yes"}, 0, False), ("1", {"a": 1.011, "verdict": "yes"}, 0, False),
    ("1", {"a": 1.0, "verdict": "no"}, 0, False), ("1", {"a": 1.009, "verdict": "yes"}, 1, False)])
def test_a_record_stays_where_it_agrees_and_only_there(monkeypatch, keep, values, seed, stays):
    path = lab.start("n").record("r", {"a": 1.0, "verdict": "yes"}, rtol=1e-2)
    before = path.read_bytes()
    monkeypatch.setenv("SHARPNB_KEEP", keep)
    lab.start("n", seed=seed).record("r", values, rtol=1e-2)
    assert (path.read_bytes() == before) is stays
    assert stays or (Record.load(path).values, Record.load(path).provenance["parameters"]["seed"]) == (values, seed)


def test_checking_compares_within_the_tolerance_and_writes_nothing(monkeypatch):
    path = lab.start("n").record("r", {"a": {"b": [1.0, 2.0]}, "word": "x"})
    before = path.read_bytes()
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    nb = lab.start("n")
    nb.record("r", {"a": {"b": [1.0, 2.0 * (1 + 0.9e-3)]}, "word": "x"})
    for wrong in ({"a": {"b": [1.0, 2.0 * (1 + 2e-3)]}, "word": "x"}, {"a": {"b": [1.0, 2.0]}, "word": "y"},
                  {"word": "x"}, {"a": {"b": [1.0, float("nan")]}, "word": "x"}):
        with pytest.raises(RecordMismatch):
            nb.record("r", wrong)
    with pytest.raises(RecordMismatch, match="no committed record"):
        nb.record("other", {"a": 1.0})
    assert path.read_bytes() == before and not (path.parent / "other.json").exists()


@pytest.mark.parametrize(("old", "new", "where"), [
    ({"a": 1}, {"a": 2}, "a is 2, committed is 1"), ([1, [2, 3]], [1, [2, 4]], "[1][1]"),
    ({"a": 1}, {"a": "1"}, "a is '1'"),
    ({"a": 1}, {"b": 1}, "other entries"), ({"a": True}, {"a": 1}, "a is 1"), ({"a": None}, {"a": 0.0}, "a is 0.0"),
])
def test_the_first_difference_is_named(old, new, where):
    assert where in first_difference(old, new, 1e-3, 1e-9)
    assert first_difference(old, old, 0, 0) is None


@pytest.mark.parametrize("change", [
    ("1.25", "1.75"), ("1.25", "-1.25"), ('"yes"', '"Yes"'), ('"seed": 0', '"seed": 8')])
def test_a_record_in_which_one_digit_was_changed_is_damaged(monkeypatch, change):
    path = lab.start("n").record("r", {"a": 1.25, "verdict": "yes"})
    path.write_text(path.read_text().replace(*change))
    assert json.loads(path.read_text())["values"], "it is still JSON"
    with pytest.raises(ValueError, match=r"r\.json is damaged.*digest.*sharpnb run n --force"):
        Record.load(path)
    monkeypatch.setenv("SHARPNB_CHECK", "1")
    with pytest.raises(ValueError, match="damaged"):
        lab.start("n").record("r", {"a": 1.25, "verdict": "yes"})
    monkeypatch.setenv("SHARPNB_CHECK", "")
    lab.start("n").record("r", {"a": 1.25, "verdict": "yes"})
    assert Record.load(path).values == {"a": 1.25, "verdict": "yes"}, "the next run replaces it"


def test_every_committed_record_is_whole():
    files = sorted((Path(__file__).resolve().parents[3] / "data" / "records").glob("*/*/*.json"))
    assert len(files) > 60 and all(Record.load(file).values for file in files)
    # Those of the quick profile get their digest when they are renewed.
    assert all(json.loads(file.read_text())["digest"] for file in files if file.parent.name != "quick")


def test_a_start_says_what_is_allowed_and_a_check_fails_above_its_bound_or_on_nan(capsys):
    for parameters, words in (({"profile": "fast"}, "quick, mid, full"), ({"device": "tpu9"}, "device")):
        with pytest.raises(ValueError, match=words):
            lab.start("n", **parameters)
    nb = lab.start("n")
    nb.check("it holds", -1e-13, 1e-12)
    assert capsys.readouterr().out == "✔ it holds (residual ≤ 1e-12)\n"
    for residual in (2e-12, float("nan")):
        with pytest.raises(AssertionError, match="it fails"):
            nb.check("it fails", residual, 1e-12)


def test_a_figure_is_shown_with_its_text_relative_to_the_working_folder(project, monkeypatch):
    shown = []
    monkeypatch.setattr(lab.Notebook, "_show", staticmethod(shown.append))
    (project / "notebooks").mkdir()
    monkeypatch.chdir(project / "notebooks")
    lab.start("n").figure(plt.figure(), "f", alt=ALT, caption="**Fig.**", data={"x": [1.0]})
    assert shown[0].startswith(f"![{ALT}](<../figures/n/f.png>)") and "[numbers](<../figures/n/f.csv>)" in shown[0]
