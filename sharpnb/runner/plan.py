"""What a result depends on, what a run would do, and why: one step a notebook.

The *stamp* of a notebook is a flat table: its code cells (not the text, not the outputs), its parameters, each file of
the package and of the studies that it reaches, the data sets that it names, the installed versions. A notebook is
executed again when its stamp differs from that of its last successful run, or when something that this run wrote is
gone or was changed by another hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sharpnb import datafiles, paths, sources
from sharpnb.near import near
from sharpnb.paths import PROFILES
from sharpnb.runner import stored
from sharpnb.runner.catalogue import Notebook, RunnerError, find_all, select

FORCE = "--force"  # the reason to execute what is up to date


@dataclass(frozen=True)
class Step:
    """One notebook of a run.

    Attributes:
        injected: the parameters that differ from the notebook's own defaults, which papermill is given.
        device: what the parameter of this name comes to: the CPU for ``auto`` but in the full profile.
        update: whether the outputs go back into the committed notebook.
        key: the stamp of today.
        last: what the last successful run has left, or nothing.
        why: the reasons to execute it; empty when the last run's result still holds.
        forced: whether what is finished already is made again: under ``--force``, and when such a run is gone on with.
    """

    notebook: Notebook
    profile: str
    injected: Mapping[str, Any]
    device: str
    update: bool
    key: Mapping[str, str]
    last: Mapping[str, Any]
    why: tuple[str, ...] = ()
    forced: bool = False

    @property
    def name(self) -> str:
        """The notebook's name."""
        return self.notebook.name

    @property
    def folder(self) -> Path:
        """Where the executed copy and its stamp are kept."""
        return paths.runs("committed" if self.update else self.profile)

    @property
    def sidecar(self) -> Path:
        """The file in which the stamp is kept."""
        return self.folder / f"{self.name}.json"

    def copy(self, state: str = "") -> Path:
        """Return the path of the executed copy; ``state`` is ``partial`` while it runs, ``failed`` after a failure."""
        return self.folder / f"{self.name}{'.' if state else ''}{state}.ipynb"

    @property
    def reason(self) -> str:
        """Why it runs, or why it does not, on one line."""
        if self.why:
            return ", ".join(self.why[:4]) + (f" and {len(self.why) - 4} more" if len(self.why) > 4 else "")
        return f"up to date: nothing has changed since the last run ({self.last['finished']})"


def plan(
    names: list[str] | None = None, profile: str = "quick", given: Mapping[str, Any] | None = None,
    *, force: bool = False, update: bool = False,
) -> list[Step]:
    """Return the steps of a run in the order of execution, without executing anything.

    Arguments as of :func:`sharpnb.runner.run`; ``given`` are its parameters. A RunnerError for an unknown notebook,
    profile or parameter, or a value that a parameter does not take.
    """
    if profile not in PROFILES:
        raise RunnerError(f"There is no profile {profile!r}. Choose one of {', '.join(PROFILES)}."
                          f"{near(profile, PROFILES)}")
    if update and (given or profile != "quick"):
        raise RunnerError("--update stores what the defaults give in the quick profile: leave out -p and --profile.")
    chosen = sorted(select(names), key=lambda notebook: (notebook.after_all, notebook.name))
    steps = [step(notebook, given or {}, profile, force, update) for notebook in chosen]
    follows = ("it reads what the others write",) if any(s.why for s in steps if not s.notebook.after_all) else ()
    return [replace(item, why=item.why or follows) if item.notebook.after_all else item for item in steps]


def step(notebook: Notebook, given: Mapping[str, Any], profile: str, force: bool, update: bool) -> Step:
    """Compare one notebook with its last run."""
    values = notebook.values(given, profile)
    injected = {name: value for name, value in values.items() if repr(value) != repr(notebook.parameters[name].default)}
    device = str(values.get("device", "auto"))
    device = "cpu" if device == "auto" and profile != "full" else device
    item = Step(notebook, profile, injected, device, update, stamp(notebook, values, device), {})
    left = _read(item.sidecar)
    if {"key", "wrote", "finished"} <= left.keys():
        item = replace(item, last=left)
        why = _changes(item)
    else:
        why = ["its last run failed or was interrupted" if left else "not run yet on this machine"]
    begun = not item.last and bool(left.get("forced"))
    return replace(item, why=(*why, *([FORCE] if force else [])), forced=force or begun)


def _changes(item: Step) -> list[str]:
    """Say what differs from the last successful run, one short phrase each; empty when nothing does."""
    why, old = [], item.last["key"]
    for name in {**item.key, **old}:
        before, after = old.get(name), item.key.get(name)
        if before is None or after is None:
            why.append(f"{name} is {'new' if before is None else 'gone'}")
        elif before != after:
            why.append(f"{name} changed" if "#" in before else f"{name}: {before} → {after}")
    if item.update and stored.digest(item.notebook.content) != item.last.get("stored"):
        why.append("its stored outputs are not those of the last run")
    marks = item.last["wrote"] | ({} if item.update else {_name(item.copy()): item.last.get("copy")})
    for name, mark in marks.items():
        file = paths.root() / name
        if not file.exists() or sources.digest(file) != mark:
            why.append(f"{name} {'was changed since' if file.exists() else 'is missing'}")
    return why


def state(notebook: Notebook) -> str:
    """Return how the last quick run stands."""
    item = step(notebook, {}, "quick", False, False)
    return "up to date" if not item.why else "changed since" if item.last else "not run yet"


def stamp(notebook: Notebook, values: Mapping[str, Any], device: str) -> dict[str, str]:
    """Return what a run depends on, named as a reader is told; a digest has a ``#``, other values can be read."""
    reached = sources.digests(notebook.code)
    studies = [(paths.root() / name).read_text(encoding="utf-8") for name in reached
               if name.startswith("notebooks/studies/") and name.endswith(".py")]
    named = {*re.findall(r"""["'](\w+)["']""", "\n".join([*notebook.code, *studies])), *map(str, values.values())}
    return {
        "the notebook's code": "#" + hashlib.sha256(json.dumps(notebook.code).encode()).hexdigest()[:16],
        **{f"parameter {name}": repr(value) for name, value in values.items()},
        **{name: f"#{mark}" for name, mark in reached.items()},
        **{f"data set {name}": f"#{datafiles.fingerprint(name)}" for name in datafiles.NAMES if name in named},
        **(_others(notebook.name) if notebook.after_all else {}),
        **_versions(paths.root()), "Python": f"{sys.version_info.major}.{sys.version_info.minor}", "device": device,
    }


def written(notebook: str, profile: str) -> dict[str, str]:
    """Return what a run has written, its records and figures, with their digests.

    The figures of a long profile lie in a folder of its name below those of the quick one.
    """
    figures = paths.figures(notebook) / ("" if profile == "quick" else profile)
    drawn = [file for file in _files(figures) if file.parent == figures]
    return {_name(file): sources.digest(file) for file in (*_files(paths.records(notebook, profile)), *drawn)}


@cache
def _versions(root: Path) -> Mapping[str, str]:
    """Return the installed versions of what pyproject.toml asks for: the core and the ``notebooks`` extra."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.exists() else {}
    asked = [*project.get("dependencies", []), *project.get("optional-dependencies", {}).get("notebooks", [])]
    names = (re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0] for line in asked)
    return {name: paths.version(name) or "not installed" for name in names}


def _others(notebook: str) -> dict[str, str]:
    """Return the marks of what a page about all others reads: their records, their headings."""
    folder = paths.root() / "data" / "records"
    return {**{_name(file): f"#{sources.digest(file)}" for file in _files(folder)
               if not file.is_relative_to(folder / notebook)},
            **{f"notebooks/{other.name}.ipynb": f"#{other.title}" for other in find_all() if other.name != notebook}}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def _name(file: Path) -> str:
    return file.relative_to(paths.root()).as_posix()


def _read(file: Path) -> dict[str, Any]:
    """Return what a sidecar holds: of a damaged one that there was one, of none nothing."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(file.read_text(encoding="utf-8"))) or {"damaged": True}
    return {"damaged": True} if file.exists() else {}
