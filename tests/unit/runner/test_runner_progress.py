import io
from types import SimpleNamespace

from rich.console import Console

from sharpnb.runner import Result
from sharpnb.runner.progress import Progressing

STEP = SimpleNamespace(name="01_a", reason="sharpnb/rules.py changed")


def told(terminal: bool, *results: Result) -> str:
    """Tell a watcher of a start, five cells and these ends; return what it printed."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with Progressing(console) as watcher:
        watcher.started(STEP)
        for number in range(1, 6):
            watcher.cell("01_a", number, 5)
        for result in results:
            watcher.ended(result)
    return out.getvalue()


def test_a_log_gets_plain_lines():
    assert told(False, Result("01_a", "", "done", 12.4)).splitlines() == [
        "01_a: sharpnb/rules.py changed", "01_a: done in 12 s, results as they were, within their tolerances"]


def test_a_terminal_gets_a_bar():
    said, new = told(True), tuple(f"figures/01_a/{name}.png" for name in "abcdef")
    assert "cell 5/5" in said and "━" in said
    said = told(True, Result("01_a", "", "done", 12.4, renewed=new))
    assert "01_a: done in 12 s, new: a.png, b.png, c.png, d.png, e.png, f.png" in said


def test_a_failure_shows_the_traceback_in_full_and_where_the_notebook_is(project):
    lines = [f"line {number} " + "x" * 200 for number in range(60)]
    trace = "\n".join([*lines, "\x1b[31mValueError\x1b[0m: [no] markup"])
    kept = project / "data" / "runs" / "quick" / "01_a.failed.ipynb"
    said = told(False, Result("01_a", "", "failed", 1.0, trace, kept)).splitlines()
    assert said[-2:] == ["ValueError: [no] markup", "01_a: as far as it came: data/runs/quick/01_a.failed.ipynb"]
    assert sum(line.startswith("line ") and line.endswith("x" * 200) for line in said) == 60
