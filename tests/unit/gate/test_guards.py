"""Every guard passes the toy notebook and finds what it is there for."""

import json

import pytest
import toy
from gate import guards


@pytest.fixture
def root(tmp_path):
    toy.checkout(tmp_path, {"01_toy": toy.guarded()})
    toy.picture(tmp_path)
    return tmp_path


def found(root, notebook) -> list[str]:
    file = root / "notebooks" / "01_toy.ipynb"
    file.write_text(json.dumps(notebook), encoding="utf-8")
    return guards.problems(file)


def cell(notebook, ident):
    return next(cell for cell in notebook["cells"] if cell["id"] == ident)


def strip(**more):
    return lambda nb: [each.update({"outputs": [], **more}) for each in nb["cells"] if each["cell_type"] == "code"]


def output(ident, **fields):
    return lambda nb: cell(nb, ident)["outputs"].append({"metadata": {}, **fields})


def show(mime, text="x"):
    return output("loss", output_type="display_data", data={mime: text})


def say(text):
    return lambda nb: cell(nb, "loss")["outputs"][0].update(text=text)


def tag(ident, *tags):
    return lambda nb: cell(nb, ident)["metadata"].update(tags=list(tags))


def source(ident, text):
    return lambda nb: cell(nb, ident).update(source=text)


def shown(text):
    return lambda nb: cell(nb, "fig")["outputs"][0]["data"].update({"text/markdown": text})


TOO_LONG = "def long():\n" + "    x = 1\n" * 40

MUTANTS = {
    "stripped": (strip(execution_count=None), "executed: no cell has an output: the notebook was stripped"),
    "stripped, counts kept": (strip(), "executed: cell 'claims' is tagged claims and has no output"),
    "out of order": (lambda nb: cell(nb, "loss").update(execution_count=7), "has the execution count 7, not 2"),
    "too large": (say("x" * 200_001), "small: the file has"),
    "error": (output("loss", output_type="error", ename="ValueError", evalue="no", traceback=[]),
              "cell 'loss' ends in an error: ValueError: no"),
    "warning": (output("loss", output_type="stream", name="stderr", text="UserWarning"), "writes to standard error"),
    "svg": (show("image/svg+xml"), "shows an inline SVG"),
    "inline picture": (show("image/png", "aGk="), "shows an inline picture"),
    "widget": (show(guards.WIDGET, {}), "shows a widget, and neither"),
    "ignored": (tag("loss", "nbval-ignore-output"), "tagged nbval-ignore-output, which is for a widget"),
    "path": (say("saved to /home/me/x.png\n"), "an absolute path: '/home/me'"),
    "address": (say("<object at 0x7f3b2c1d>\n"), "a memory address"),
    "date": (say("on 2026-11-20\n"), "a date: '2026-11-20'"),
    "time": (say("at 12:34:56\n"), "a date"),
    "windows path": (say("C:\\Users\\me\n"), "an absolute path"),
    "tensor": (say("tensor(0.5)\n"), "a raw tensor"),
    "no parameters": (tag("params"), "0 cells tagged 'parameters'"),
    "two parameter cells": (tag("loss", "parameters"), "2 cells tagged 'parameters'"),
    "unseen parameter": (source("params", "rho: float | None = 0.05"), "papermill does not see the parameter 'rho'"),
    "expression": (source("params", "rho: float = 0.05 * 2"), "plain literals only"),
    "kernel": (lambda nb: nb["metadata"]["kernelspec"].update(name="mine"), "the kernel is 'mine'"),
    "papermill": (lambda nb: nb["metadata"].update(papermill={}), "metadata of papermill"),
    "python version": (lambda nb: nb["metadata"]["language_info"].update(version="3.11"), "run 01_toy --update"),
    "double id": (lambda nb: cell(nb, "fig").update(id="loss"), "the cell id 'loss' is missing or not unique"),
    "no alt": (shown("![](<../figures/01_toy/path.png>)"), "without alternative text"),
    "no alt in html": (shown('<img src="../figures/01_toy/path.png">'), "without alternative text"),
    "no picture": (shown("![A line.](../figures/01_toy/lost.png)"), "and there is no lost.png"),
    "picture from elsewhere": (shown("![A line.](https://example.org/a.png)"), "a picture from elsewhere"),
    "long function": (source("loss", TOO_LONG), "defines long in 41 lines"),
    "magic": (source("loss", "%time 1"), "not plain Python"),
    "no title": (source("head", "Is it one?"), "the first cell must be Markdown and begin with the title"),
    "two titles": (source("head", "# A\n\n# B"), "there must be one title (# …), not 2"),
    "level left out": (source("head", "# A\n\n### B"), "'B' leaves out a level"),
    "no claims": (tag("claims"), "no cell is tagged 'claims'"),
    "skipped": (tag("loss", "nbval-skip"), "bears 'nbval-skip'"),
    "ignored by comment": (source("loss", "# NBVAL_IGNORE_OUTPUT\nprint(1)"), "bears '# NBVAL_IGNORE_OUTPUT'"),
    "odd tolerance": (tag("loss", "rtol=2"), "tag 'rtol=2': a tolerance is"),
    "index": (lambda nb: nb["metadata"].update(sharpnb={"after": "all"}), "the index does not mention 01_toy"),
}


@pytest.mark.filterwarnings("ignore:Non-unique cell id")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(root, name):
    mutate, message = MUTANTS[name]
    notebook = toy.guarded()
    if name == "index":
        cell(notebook, "fig")["outputs"], cell(notebook, "fig")["source"] = [], "pass"
    mutate(notebook)
    assert message in "\n".join(found(root, notebook))


def test_a_file_that_is_no_notebook_is_a_problem_and_not_a_crash(root):
    assert "cannot be read as a notebook" in found(root, [])[0]


@pytest.mark.parametrize("end", ["png", "svg", "csv"])
def test_a_picture_needs_its_svg_and_its_numbers(root, end):
    (root / "figures" / "01_toy" / f"path.{end}").unlink()
    assert found(root, toy.guarded()) == [
        f"readable_pictures: cell 'fig' shows ../figures/01_toy/path.png, and there is no path.{end}"]


def test_a_widget_is_welcome_beside_a_static_picture(root):
    notebook = toy.guarded()
    cell(notebook, "check")["metadata"]["tags"] = ["nbval-ignore-output"]
    assert found(root, notebook) == []


@pytest.mark.parametrize("text", ["a/b and 1/2 of https://example.org/home/x", "<td></td>", "../figures/x.png", "1:2"])
def test_the_toy_passes_and_ordinary_text_is_no_leak(root, text):
    assert found(root, toy.guarded()) == []
    notebook = toy.guarded()
    say(text + "\n")(notebook)
    assert found(root, notebook) == []
