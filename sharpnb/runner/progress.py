"""What the terminal shows while notebooks run, and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sharpnb import paths
from sharpnb.runner.execute import Result
from sharpnb.runner.plan import Step

_COLOURS = {"done": "green", "up to date": "dim", "not run": "dim"}
_QUIET = 10.0  # seconds between two plain lines of one notebook


class Progressing:
    """A watcher: bars in a terminal, plain lines elsewhere (a log, a pipe).

    Used as a context manager. With one or many notebooks at work there is a line each: name, cell i of n, time.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.tasks: dict[str, TaskID] = {}
        self.begun: dict[str, float] = {}
        self.said: dict[str, float] = {}
        cells = (BarColumn(), TextColumn("cell"), MofNCompleteColumn(), TimeElapsedColumn())
        columns = (TextColumn("{task.description}"), *cells)
        self.bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progressing:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars:
            self.bars.stop()

    def started(self, step: Step) -> None:
        """Show that a notebook begins, and why."""
        self.begun[step.name] = self.said[step.name] = self.clock()
        self._line(f"{step.name}: {step.reason}")
        if self.bars:
            self.tasks[step.name] = self.bars.add_task(step.name, total=None)

    def cell(self, name: str, number: int, total: int) -> None:
        """Show the cell that is at work."""
        if self.bars:
            self.bars.update(self.tasks[name], completed=number, total=total)
        elif self.clock() - self.said[name] > _QUIET:
            self.said[name] = self.clock()
            self._line(f"{name}: cell {number} of {total}, {self.clock() - self.begun[name]:.0f} s")

    def ended(self, result: Result) -> None:
        """Show how a notebook ended; a traceback in full."""
        if self.bars and result.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(result.name))
        if result.outcome == "up to date":
            self._line(f"{result.name}: {result.why}")
            return
        colour = _COLOURS.get(result.outcome, "bold red")
        self._line(f"{result.name}: {result.outcome} in {result.seconds:.0f} s{_results(result)}", colour)
        if not result.ok and result.detail:
            self.console.print(Text.from_ansi(result.detail), soft_wrap=True)
        if not result.ok and result.kept:
            self._line(f"{result.name}: the notebook as far as it came: {_shown(result)}")

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)


def summary(results: list[Result]) -> Table:
    """Return the closing table: notebook, why it ran, seconds, result."""
    table = Table("notebook", "why", "seconds", "result", title_justify="left")
    table.columns[2].justify = "right"
    for result in results:
        style = _COLOURS.get(result.outcome, "bold red")
        why = "" if result.outcome == "up to date" else result.why
        seconds = f"{result.seconds:.1f}" if result.seconds else ""
        table.add_row(Text(result.name), Text(why), seconds, Text(result.outcome, style))
    return table


def _results(result: Result) -> str:
    """Say how what a notebook has written relates to what was there."""
    if not result.ok:
        return ""
    if not result.renewed:
        return ", results as they were, within their tolerances"
    names = [name.rsplit("/", 1)[1] for name in result.renewed]
    return f", new: {', '.join(names[:4])}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shown(result: Result) -> str:
    assert result.kept is not None
    return result.kept.relative_to(paths.root()).as_posix()
