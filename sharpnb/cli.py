"""The ``sharpnb`` command.

Nothing heavy is imported before a command needs it: ``--help``, ``sharpnb list`` and a dry run import no torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

if __name__ == "__main__" and not sys.flags.safe_path and not os.path.isdir("sharpnb"):
    sys.path.append(sys.path.pop(0))  # `python -m` puts the working folder first, with a user's random.py in it

try:
    import typer
    from rich.table import Table
    from rich.text import Text
    from typer import Option

    from sharpnb import console
except ModuleNotFoundError as error:  # the optimizers and the Hessian tool come without the command's libraries
    raise SystemExit(f"The sharpnb command needs {error.name}: pip install 'sharpnb[notebooks]'") from None

from sharpnb import __version__, paths
from sharpnb.runner.catalogue import RunnerError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Re-make the figures of the papers on flat minima, weight averaging and decoupled weight decay.\n\n"
    "Start with [bold]sharpnb doctor[/bold] (does this machine have what it takes?) and [bold]sharpnb run[/bold] "
    "(executes every notebook that is not up to date, some minutes on a laptop).",
)
_console = console.Terminal()
_say = _console.say
_Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAMES", help="Notebooks, as number (03), name (03_hessian_spectra) or path. All without."),
]


def _show_version(asked: bool) -> None:
    if asked:
        _console.print(f"sharpnb {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def options(version: Annotated[bool, Option(
    "--version", help="Say which version this is.", callback=_show_version, is_eager=True)] = False) -> None:
    """Take what stands before a command."""


@app.command("list")
def list_notebooks() -> None:
    """Show the notebooks: what each is about, and whether its quick run is up to date."""
    from sharpnb.runner.catalogue import find_all
    from sharpnb.runner.plan import state

    table = Table("notebook", "about", "quick run")
    for notebook in find_all():
        table.add_row(*map(Text, (notebook.name, notebook.title, state(notebook))))
    _console.print(table)
    _name_passed_over()


def _name_passed_over() -> None:
    """Name what stands among the notebooks and is none that can be run."""
    from sharpnb.runner.catalogue import passed_over

    for name, reason in passed_over().items():
        _say(f"Passed over: {name}.ipynb. {reason}")


@app.command()
def run(
    names: _Names = None,
    profile: Annotated[str, Option(help="quick: seconds on a CPU. mid: its hours. full: on a GPU.")] = "quick",
    jobs: Annotated[int | None, Option(min=1, help="Notebooks at once. Default: 2 if quick, else 1.")] = None,
    parameter: Annotated[list[str] | None, Option(
        "-p", "--parameter", metavar="NAME VALUE",
        help="A parameter in the place of the notebook's default, as in -p seed 3. Several times as needed.")] = None,
    force: Annotated[bool, Option("--force", help="Make again what is up to date, and finished records.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be executed and why, and stop.")] = False,
    update: Annotated[bool, Option("--update", help="For maintainers: store outputs in notebooks/.")] = False,
) -> None:
    """Execute notebooks whose code, parameters, package sources, data or versions changed since their last run.

    Executed copies go to data/runs, figures to figures, results to data/records. A notebook that fails is kept as far
    as it came, and the others go on.

    Exit status: 0 all is done, 1 something failed, 2 the call was refused.
    """
    from sharpnb import runner

    given = dict(map(_pair, parameter or []))
    if not names:
        _name_passed_over()
    if dry_run:
        for step in runner.plan(names, profile, given, force=force, update=update):
            _say(f"{'run ' if step.why else 'skip'} {step.name}: {step.reason}")
        return
    for name in ("papermill", "ipykernel"):  # here, for the processes that need them have no one to tell
        if not find_spec(name):
            raise ModuleNotFoundError(name=name)
    from sharpnb.runner.progress import Progressing

    try:
        with Progressing(_console) as watcher:
            results = runner.run(names, profile, jobs, given, force=force, update=update, watcher=watcher)
    except KeyboardInterrupt:
        _stop("Interrupted. What has finished is kept; the same command goes on from there.", status=130)
    _say(", ".join(f"{n} {end}" for end, n in Counter(result.outcome for result in results).items()) + ".")
    if not all(result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def replicate(
    seeds: Annotated[str, Option(help="Fresh judging seeds, first:end, such as 7000:7020.")],
    names: _Names = None,
    jobs: Annotated[int, Option(min=1, help="Notebooks at once.")] = 2,
) -> None:
    """Run notebooks' judged settings on fresh seeds: old and new effect side by side, in data/replications."""
    replication = _of_site("replicate")
    with _refusing():
        file, told = replication.replicate(names, seeds, jobs)
    for row in told["rows"]:
        sides = (f"{row[k]['verdict']} {row[k]['text']}" for k in ("old", "fresh"))
        _say(f"{row['claim']}: {', fresh: '.join(sides)}")
    _say(f"{replication.summary(told['rows'])} {file}")
    if failed := {name: run["failed"] for name, run in told["notebooks"].items() if "failed" in run}:
        _stop("\n".join(f"{name} failed on these seeds: {reason}" for name, reason in failed.items()), status=1)


@app.command()
def report() -> None:
    """Write REPORT.md and REPORT.html: every figure, table and claim of the papers, what was measured, the verdict."""
    pages = _of_site("report")
    with _refusing():
        changed = pages.write()
    _say(f"{paths.root() / 'REPORT.md'}, REPORT.html; new are {', '.join(changed) or 'none'}.")


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn a ValueError, whose message is for the user, into the end of the command."""
    try:
        yield
    except ValueError as error:
        raise RunnerError(str(error)) from None


def _of_site(name: str) -> Any:
    """Import a module of the checkout's ``site/``, which is in no wheel."""
    for here in (paths.root(), Path(__file__).resolve().parents[1]):
        if (here / "site" / f"{name}.py").is_file():
            sys.path[:0] = [str(here / "site"), str(here / "notebooks")]
            return import_module(name)
    raise RunnerError(f"`sharpnb {name}` is made by site/{name}.py of the project, which an installed package does not "
                      "hold. Call it in a checkout, or set SHARPNB_ROOT to one.")


@app.command("data")
def data_sets() -> None:
    """Show which data sets are here, whether their files are whole, and how to get the others."""
    from sharpnb.lab import data

    for name in data.NAMES:
        _say(f"{name}: {data.status(name)}")
    _say(f"A missing data set is downloaded when it is first used and a network is there. Without one, copy its files "
         f"under {paths.datasets()}, or set SHARPNB_DATA to the folder that has them: every file is compared with the "
         "MD5 that torchvision publishes. Delete a damaged one: it is then fetched like a missing one.")


@app.command("doctor")
def doctor_command() -> None:
    """Say what this machine has and lacks for the notebooks, and what to do about it."""
    from sharpnb import doctor

    problems = 0
    for what, found, remedy in doctor.examine():
        problems += bool(remedy)
        _console.print(Text(f"{what}: {found}" + (f": {remedy}" if remedy else ""), "red" if remedy else ""))
    _say(f"Problems: {problems}.")
    raise typer.Exit(int(problems > 0))


@app.command("sweep")
def sweep_command(
    file: Annotated[Path | None, typer.Argument(
        help=r"TOML with \[data], \[model], \[train] and one or several \[\[grid]].", show_default=False)] = None,
    scheduler: Annotated[str | None, Option(help="Address of a Dask scheduler.")] = None,
    jobs: Annotated[int | None, Option(min=1, help="Processes here. Default: one a processor.")] = None,
    out: Annotated[Path | None, Option(help="The table of results. Default: the file's name with .csv.")] = None,
    example: Annotated[bool, Option("--example", help="Print a file to begin with, and stop.")] = False,
) -> None:
    """Train every cell of a grid, here or on a Dask cluster, and write the table of results; a later call goes on.

    The file says what is trained: data, model, steps, and a grid of settings (rule, lr, weight_decay, seed, …), all
    combinations of it. `sharpnb sweep --example > mine.toml` writes one with every part explained.

    The file names code that is run: under data and model, module:function or file.py:function is imported from the
    file's folder or from the working folder. Run no file that you do not trust.

    Exit status: 0 every cell was trained, also where some diverged; 1 cells failed, or none has a result; 2 the call
    or the file was refused; 130 interrupted.
    """
    from sharpnb.lab import sweepfile

    if example:
        print(sweepfile.EXAMPLE.read_text(encoding="utf-8"), end="")
        return
    if file is None:
        raise RunnerError("Which file? sharpnb sweep FILE.toml; `sharpnb sweep --example` prints one to begin with.")
    out = out or file.with_suffix(".csv")
    try:
        with _refusing(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A shard failed twice")  # told below
            table = sweepfile.sweep_file(file, out, scheduler, jobs)
    except KeyboardInterrupt:
        _stop("Interrupted. Finished shards are kept; the same command goes on from there.", 130)
    failed = table[table["reason"].str.startswith("failed")]
    diverged = len(table[table["reason"] != ""]) - len(failed)
    _say(f"{len(table)} cells, {len(failed)} failed, {diverged} diverged: {out}")
    for reason, cells in failed.groupby("reason"):
        _say(f"{len(cells)} cells, the first is row {cells.index[0] + 1}: {reason}")
    if len(failed) or diverged == len(table):
        raise typer.Exit(1)


@app.command("spectrum")
def spectrum_command(
    model: Annotated[str, Option(
        help="module:function (or file.py:function) that returns your network, or a torchvision model's name.")],
    data: Annotated[str, Option(
        help="module:function that returns (x, y), batches, a Dataset or a DataLoader; or digits, cifar10, …; or "
        "noise:3x224x224, one synthetic batch.")],
    checkpoint: Annotated[Path | None, Option(
        help="The weights: a torch or safetensors file, an index of several, a run's or Lightning's checkpoint."
    )] = None,
    key: Annotated[str | None, Option(help="Which weights of several in the file, as in state_dict.teacher.")] = None,
    allow_class: Annotated[list[str] | None, Option(
        metavar="GLOB", help="Pass over objects of these classes in the file; no code of theirs is run.")] = None,
    allow_missing: Annotated[list[str] | None, Option(
        metavar="GLOB", help="Weights that may be missing in the file: they stay as the model was built.")] = None,
    allow_unexpected: Annotated[list[str] | None, Option(
        metavar="GLOB", help="Weights in the file that the model has not got: they are passed over.")] = None,
    weights: Annotated[str | None, Option(help="Torchvision's pretrained weights, such as DEFAULT.")] = None,
    classes: Annotated[int | None, Option(min=1, help="Outputs of a torchvision model, where not ImageNet's.")] = None,
    loss: Annotated[str, Option(help="cross_entropy, mse, binary_cross_entropy, module:function.")] = "cross_entropy",
    operator: Annotated[str, Option(help="hessian, ggn (Gauss-Newton) or fisher (empirical).")] = "hessian",
    mode: Annotated[str, Option(help="eval, batch_stats (BatchNorm by each batch) or as_is.")] = "eval",
    params: Annotated[list[str] | None, Option(help="Only these parameters or layers: names, patterns.")] = None,
    split: Annotated[str, Option(help="train or test, of a data set named.")] = "train",
    batch_size: Annotated[int, Option(min=1, help="How data sets are cut.")] = 256,
    batches: Annotated[int | None, Option(min=1, help="Take so many batches. Default: all.")] = None,
    count: Annotated[str | None, Option(
        help="Samples of a batch, or terms that its loss averages over, where shapes do not say it: module:function of "
        "(x, y); or 1 for the plain mean over batches.")] = None,
    top: Annotated[int, Option(min=0, help="Largest eigenvalues to find and verify; 0 for none.")] = 5,
    steps: Annotated[int, Option(min=1, help="Lanczos steps a probe.")] = 60,
    probes: Annotated[int, Option(min=0, help="Random probes of the density; 0 for no density.")] = 8,
    seed: Annotated[int, Option(
        min=0, help="Of the probes, and of what your functions draw: a loader's order, weights without a file.")] = 0,
    memory: Annotated[float | None, Option(min=0, help="Gigabytes for the bases. Default: up to 2.")] = None,
    device: Annotated[str, Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    dtype: Annotated[str, Option(help="float32 or float64.")] = "float32",
    out: Annotated[Path, Option(help="Folder for numbers and figure.")] = Path("spectrum"),
) -> None:
    """Measure the Hessian's spectrum of your own network: eigenvalues, density, trace, with their errors.

    After a kill the same command goes on from where it was. Files: spectrum.json, eigenvalues.csv, density.csv, .png
    and .svg.
    """
    from sharpnb import spectrum as own

    try:
        settings = own.Settings(
            operator, mode, tuple(params or ()), top, steps, probes, seed, None if memory is None else memory * 1e9)
        kind = own.float_type(dtype)
        own.seed_everything(seed)
        network = own.placed(own.load_model(
            model, checkpoint, key=key, weights=weights, classes=classes, say=_say, allow_classes=allow_class or (),
            allow_missing=allow_missing or (), allow_unexpected=allow_unexpected or ()), device, kind)
        own.seed_everything(seed)  # again, so that the data do not hang on what the model's function drew
        pieces = own.load_batches(data, split=split, batch_size=batch_size, limit=batches, dtype=kind, say=_say)
        found = own.measure_spectrum(
            network, own.load_loss(loss), pieces, settings, out, count=own.load_count(count),
            origin={"model": model, "checkpoint": checkpoint and checkpoint.name, "weights": weights, "data": data,
                    "split": split, "loss": loss, **({"count": count} if count else {})},
            progress=sys.stderr.isatty(), say=_say)
    except ValueError as error:
        raise RunnerError(f"{error}{' Here: --count file.py:function.' if 'count=' in str(error) else ''}") from None
    written = found.write(out)  # before anything is printed, which a terminal may refuse
    if found.complete:
        found.forget_state()
    _show_spectrum(found, model, out, written)


def _show_spectrum(found: Any, model: str, out: Path, written: list[Path]) -> None:
    table = Table("")
    table.add_column(Text(model))
    for name, text in found.rows():
        table.add_row(name, Text(text))
    _console.print(table)
    _say(f"Written: {', '.join(map(str, written))}")
    if written[0].parent != out:
        _say(f"{out} holds a complete result of another measurement" if found.complete else
             f"{out} holds a complete result, and this one is not. It stays as it is.")
    if _console.failure is not None:
        _stop(f"Standard output cannot be written ({_console.failure}). Written: {', '.join(map(str, written))}", 1)
    if not found.complete:
        _stop("It did not come to its end. The same command goes on from its last save, at most a minute ago.", 130)


def main() -> None:
    """Run the command line; what can be foreseen ends in a message, never in a traceback."""
    console.prepare()
    try:
        app(_with_pairs(sys.argv[1:]), prog_name="sharpnb")
    except RunnerError as error:
        _stop(str(error))
    except ModuleNotFoundError as error:
        _stop(f"{error.name} is missing: pip install 'sharpnb[notebooks]'. `sharpnb doctor` looks at the rest.")
    except OSError as error:
        _stop("\n".join([str(error), *getattr(error, "__notes__", [])]))


def _stop(message: str, status: int = 2) -> NoReturn:
    console.Terminal(stderr=True).say(message)
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
