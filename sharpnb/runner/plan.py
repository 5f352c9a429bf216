"""What a run would do, and why: one step a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sharpnb import paths, sources
from sharpnb.runner import keys, parameters, stored
from sharpnb.runner.catalogue import Notebook, select
from sharpnb.runner.errors import RunnerError, nearest

PROFILES = ("quick", "full")
FORCE = "--force"  # the reason to execute what is up to date


@dataclass(frozen=True)
class Step:
    """One notebook of a run.

    Attributes:
        notebook: what would be executed.
        profile: ``quick`` or ``full``.
        values: every parameter's value.
        injected: those that differ from the notebook's own defaults, which papermill is given.
        update: whether the outputs go back into the committed notebook.
        key: what the result depends on, see :func:`sharpnb.runner.keys.key`.
        why: the reasons to execute it; empty when the last run's result still holds.
        last: what the last successful run has left, or nothing.
        forced: whether what is finished already is made again: under ``--force``, and when such a run is gone on with.
    """

    notebook: Notebook
    profile: str
    values: Mapping[str, Any]
    injected: Mapping[str, Any]
    update: bool
    key: Mapping[str, Any]
    why: tuple[str, ...]
    last: Mapping[str, Any]
    forced: bool = False

    @property
    def name(self) -> str:
        """The notebook's name."""
        return self.notebook.name

    @property
    def folder(self) -> Path:
        """Where the executed copy and its key are kept."""
        return paths.runs("committed" if self.update else self.profile)

    def copy(self, state: str = "") -> Path:
        """Return the path of the executed copy; ``state`` is ``partial`` while it runs, ``failed`` after a failure."""
        return self.folder / f"{self.name}{'.' if state else ''}{state}.ipynb"

    @property
    def reason(self) -> str:
        """Why it runs, or why it does not, on one line."""
        if self.why:
            return ", ".join(self.why[:4]) + (f" and {len(self.why) - 4} more" if len(self.why) > 4 else "")
        return ("up to date: code, parameters, sources, data and versions are those of the last run "
                f"({self.last['finished']}, {self.last['seconds']:.0f} s)")


def plan(
    names: list[str] | None = None, profile: str = "quick", given: Mapping[str, Any] | None = None,
    *, force: bool = False, update: bool = False,
) -> list[Step]:
    """Return the steps of a run in the order of execution, without executing anything.

    Args:
        names: numbers, names or paths of notebooks; all without.
        profile: ``quick`` or ``full``.
        given: parameters in the place of the defaults, for every named notebook.
        force: execute also what is up to date.
        update: for maintainers, see :func:`sharpnb.runner.run`.

    Raises:
        RunnerError: for an unknown notebook, profile or parameter, or a value that a parameter does not take.
    """
    if profile not in PROFILES:
        hint = nearest(profile, PROFILES)
        raise RunnerError(f"There is no profile {profile!r}. Choose one of {', '.join(PROFILES)}.{hint}")
    if update and (given or profile != "quick"):
        raise RunnerError("--update stores what the defaults give in the quick profile: leave out -p and --profile.")
    chosen = sorted(select(names), key=lambda notebook: (notebook.after_all, notebook.name))
    values = [parameters.effective(notebook.parameters, given or {}, profile, notebook.name) for notebook in chosen]
    steps = [step(*pair, profile, force, update) for pair in zip(chosen, values, strict=True)]
    changes = any(item.why for item in steps if not item.notebook.after_all)
    follows = [changes and item.notebook.after_all and not item.why for item in steps]
    return [replace(item, why=("it reads what the others write",)) if follow else item
            for item, follow in zip(steps, follows, strict=True)]


def step(notebook: Notebook, values: Mapping[str, Any], profile: str, force: bool, update: bool) -> Step:
    """Compare one notebook with its last run."""
    defaults = {name: parameter.default for name, parameter in notebook.parameters.items()}
    injected = {name: value for name, value in values.items() if repr(value) != repr(defaults[name])}
    new = keys.key(notebook, values, profile)
    bare = Step(notebook, profile, values, injected, update, new, (), _last(notebook.name, profile, update))
    why = [*_why(bare), *([FORCE] if force else [])]
    begun = not bare.last and _read(sidecar(bare.folder, bare.name)).get("forced", False)
    return replace(bare, why=tuple(why), forced=force or bool(begun))


def _why(candidate: Step) -> list[str]:
    if not candidate.last:
        begun = _read(sidecar(candidate.folder, candidate.name))
        return ["its last run failed or was interrupted" if begun else "not run yet on this machine"]
    why = keys.differences(candidate.last["key"], candidate.key)
    if candidate.update and stored.digest(candidate.notebook.content) != candidate.last.get("stored"):
        why.append("its stored outputs are not those of the last run")
    copy, name = candidate.copy(), candidate.copy().relative_to(paths.root()).as_posix()
    if not candidate.update and not copy.exists():
        why.append(f"{name} is missing")
    elif not candidate.update and sources.digest(copy) != candidate.last.get("copy"):
        why.append(f"{name} was changed since")
    return [*why, *keys.missing(candidate.last["wrote"])]


def state(notebook: Notebook) -> str:
    """Return how the last quick run stands."""
    last = _last(notebook.name, "quick", update=False)
    if not last:
        return "not run yet"
    values = parameters.effective(notebook.parameters, {}, "quick", notebook.name)
    current = step(notebook, values, "quick", False, False)
    return "changed since" if current.why else "up to date"


def sidecar(folder: Path, name: str) -> Path:
    """Return the file in which a run's key is kept."""
    return folder / f"{name}.json"


def _last(name: str, profile: str, update: bool) -> dict[str, Any]:
    last = _read(sidecar(paths.runs("committed" if update else profile), name))
    return last if {"key", "wrote", "finished", "seconds"} <= last.keys() else {}


def _read(file: Path) -> dict[str, Any]:
    """Return what a sidecar holds: of a damaged one that there was one, of none nothing."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) or {"damaged": True}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        return {"damaged": True}
