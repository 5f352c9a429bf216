"""What the terminal shows while notebooks run."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sharpnb import paths
from sharpnb.runner.execute import Result, Watcher
from sharpnb.runner.plan import Step


class Progressing(Watcher):
    """A line at each start and end; between them a bar in a terminal (name, cell i of n, time)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: dict[str, TaskID] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("cell"), MofNCompleteColumn(),
                   TimeElapsedColumn())
        self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> Progressing:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def started(self, step: Step) -> None:
        """Show that a notebook begins, and why."""
        self._line(f"{step.name}: {step.reason}")
        self.tasks[step.name] = self.bars.add_task(step.name, total=None)

    def cell(self, name: str, number: int, total: int) -> None:
        """Show the cell that is at work."""
        self.bars.update(self.tasks[name], completed=number, total=total)

    def ended(self, result: Result) -> None:
        """Show how a notebook ended, and what it has made anew; a traceback in full."""
        if result.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(result.name))
        if result.outcome == "up to date":
            self._line(f"{result.name}: {result.why}", "dim")
            return
        new = ", ".join(name.rsplit("/", 1)[1] for name in result.renewed)
        made = f", new: {new}" if new else ", results as they were, within their tolerances"
        self._line(f"{result.name}: {result.outcome} in {result.seconds:.0f} s{made if result.ok else ''}",
                   "green" if result.ok else "bold red")
        if not result.ok:
            self.console.print(Text.from_ansi(result.detail), soft_wrap=True)
        if not result.ok and result.kept:
            self._line(f"{result.name}: as far as it came: {result.kept.relative_to(paths.root()).as_posix()}")

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)
