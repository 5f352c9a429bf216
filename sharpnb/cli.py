"""The ``sharpnb`` command.

Nothing heavy is imported before a command needs it: ``--help`` and ``sharpnb list`` answer in well under a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:  # the optimizers and the Hessian tool come without the command's libraries
    raise SystemExit(f"The sharpnb command needs {error.name}: pip install 'sharpnb[notebooks]'") from None

from sharpnb import paths
from sharpnb.runner.errors import RunnerError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Re-make the figures of the papers on flat minima, weight averaging and decoupled weight decay.\n\n"
    "Start with [bold]sharpnb doctor[/bold] (does this machine have what it takes?) and [bold]sharpnb run[/bold] "
    "(executes every notebook that is not up to date, some minutes on a laptop).",
)
_console = Console()
_Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAMES", show_default=False,
                   help="Notebooks, as number (03), name (03_hessian_spectra) or path. All without."),
]


@app.command("list")
def list_notebooks() -> None:
    """Show the notebooks: what each is about, what it re-makes, whether its quick run is up to date."""
    from sharpnb.runner.catalogue import find_all
    from sharpnb.runner.plan import state

    table = Table("notebook", "about", "re-makes", "quick run")
    for notebook in find_all():
        table.add_row(*map(Text, (notebook.name, notebook.title, notebook.reproduces, state(notebook))))
    _console.print(table)


@app.command()
def run(
    names: _Names = None,
    profile: Annotated[str, typer.Option(
        help="quick: on a CPU, seconds each. full: at the papers' scale, on a GPU.")] = "quick",
    jobs: Annotated[int | None, typer.Option(
        min=1, help="Notebooks at once. Default: 2 in the quick profile, 1 in the full.", show_default=False)] = None,
    parameter: Annotated[list[str] | None, typer.Option(
        "-p", "--parameter", metavar="NAME VALUE", show_default=False,
        help="A parameter in the place of the notebook's default, as in -p seed 3. Several times as needed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Execute also what is up to date.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be executed and why, and stop.")] = False,
    timeout: Annotated[float | None, typer.Option(
        min=0, help="Seconds for one notebook, 0 for no limit. Default: 600 in the quick profile, none in the full.",
        show_default=False)] = None,
    update: Annotated[bool, typer.Option(
        "--update", help="For maintainers: store the new outputs in notebooks/, as they are committed.")] = False,
) -> None:
    """Execute notebooks whose code, parameters, package sources, data or versions changed since their last run.

    Executed copies go to data/runs, figures to figures, results to data/records. A notebook that fails is kept as far
    as it came, and the others go on.
    """
    from sharpnb import runner

    given = dict(map(_pair, parameter or []))
    if dry_run:
        for step in runner.plan(names, profile, given, force=force, update=update):
            _console.print(Text(f"{'run ' if step.why else 'skip'} {step.name}: {step.reason}"), soft_wrap=True)
        return
    from sharpnb.runner.progress import Progressing, summary

    try:
        with Progressing(_console) as watcher:
            results = runner.run(
                names, profile, jobs, given, force=force, update=update, timeout=timeout, watcher=watcher)
    except KeyboardInterrupt:
        _stop("Interrupted. What has finished is kept; the same command goes on from there.", status=130)
    _console.print(summary(results))
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def report() -> None:
    """Write REPORT.md: every claim of the papers, the paper's number, the measured one, the verdict."""
    from sharpnb.lab import scoreboard

    try:
        rows, page = scoreboard.rows(), scoreboard.report()
    except ValueError as error:
        raise RunnerError(str(error)) from None
    if not rows:
        raise RunnerError("There are no claims in data/records yet. Make them: sharpnb run")
    file = paths.root() / "REPORT.md"
    if not file.exists() or file.read_text(encoding="utf-8") != page:
        paths.write_whole(file, page)
    verdicts = [verdict for verdict, number in scoreboard.counts(rows).items() if number]
    table = Table("paper", *verdicts)
    for paper in dict.fromkeys(row.paper for row in rows):
        counted = scoreboard.counts([row for row in rows if row.paper == paper])
        table.add_row(Text(paper), *(str(counted[verdict] or "") for verdict in verdicts))
    _console.print(table)
    _console.print(Text(f"All {len(rows)} claims with their numbers: {file}"), soft_wrap=True)


@app.command("data")
def data_sets() -> None:
    """Show which data sets are here, whether their files are whole, and how to get the others."""
    from sharpnb.lab import data

    table = Table("data set", "state")
    states = {name: data.status(name) for name in data.NAMES}
    for name, state in states.items():
        table.add_row(name, Text(state, "green" if state == "ready" else "red" if "damaged" in state else ""))
    _console.print(table)
    if any(state != "ready" for state in states.values()):
        _console.print(Text(
            f"A missing data set is downloaded when a notebook first uses it and a network is there. Without one, put "
            f"torchvision's files under {paths.datasets()}, or set SHARPNB_DATA to a folder that has them. Delete a "
            f"damaged file: it is then fetched like a missing one. The quick profile needs digits only."),
            soft_wrap=True)


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine has and lacks for the notebooks, and what to do about it."""
    from sharpnb import doctor

    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    problems = 0
    for finding in doctor.examine():
        problems += finding.state == "problem"
        state = Text(f"{finding.state:8}", colours[finding.state])
        _console.print(state, Text(f"{finding.what}: {finding.text}"), soft_wrap=True)
    _console.print("Everything that the quick profile needs is here." if not problems else f"Problems: {problems}.")
    if problems:
        raise typer.Exit(1)


@app.command("sweep")
def sweep_command(
    file: Annotated[Path, typer.Argument(help="TOML with [data], [model], [train] and one or several [[grid]].")],
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.", show_default=False)] = None,
    jobs: Annotated[int | None, typer.Option(
        min=1, help="Processes here. Default: one for each processor.", show_default=False)] = None,
) -> None:
    """Train every cell of a grid, here or on a Dask cluster, and write FILE.csv; after a kill the same call goes on."""
    from sharpnb.lab.sweep import sweep_file

    try:
        table = sweep_file(file, scheduler, jobs)
    except ValueError as error:
        raise RunnerError(str(error)) from None
    bad = sum(reason != "" for reason in table["reason"])
    _console.print(Text(f"{len(table)} cells, {bad} of them with a reason and no result: {file.with_suffix('.csv')}"),
                   soft_wrap=True)


def main() -> None:
    """Run the command line; what can be foreseen ends in a message, never in a traceback."""
    try:
        app(_with_pairs(sys.argv[1:]), prog_name="sharpnb")
    except RunnerError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        _stop(f"{error.name} is missing: pip install 'sharpnb[notebooks]'. `sharpnb doctor` looks at the rest.")
    except OSError as error:
        _stop("\n".join([str(error), *getattr(error, "__notes__", [])]))


def _stop(message: str, status: int = 2) -> NoReturn:
    Console(stderr=True).print(Text(message), soft_wrap=True)
    raise SystemExit(status)


def _with_pairs(arguments: list[str]) -> list[str]:
    """Join ``-p name value``, papermill's form, to ``-p name=value``: typer has no option of two values given twice."""
    joined, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        joined.append(word)
        if word in ("-p", "--parameter") and rest and "=" not in rest[0] and len(rest) > 1:
            joined.append(f"{rest.pop(0)}={rest.pop(0)}")
    return joined


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise RunnerError(f"-p {text}: a parameter needs a name and a value, as in: -p seed 3")
    return name, value


if __name__ == "__main__":
    main()
