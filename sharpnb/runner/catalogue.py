"""The notebooks of the checkout: their names, what they say of themselves, and what may be set in each.

Read as plain JSON and by syntax trees: importing nbformat or papermill takes longer than reading all of them. papermill
only warns about an unknown parameter and then runs with the defaults (nteract/papermill#245, #818), so names and types
are checked here before anything runs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sharpnb import paths
from sharpnb.near import near

_CHOICES = re.compile(r"#\s*(\w[\w.-]*(?:\s*\|\s*\w[\w.-]*)+)\s*(?:[;,.:(].*)?$")
_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple, "dict": dict}


class RunnerError(RuntimeError):
    """Something that can be foreseen; the message says what was wrong, what is allowed and what to do."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter cell, such as ``profile: str = "quick"  # quick | full``, which has two choices.

    The type is that of the annotation, or of the literal where there is none.
    """

    name: str
    default: Any
    type: type
    choices: tuple[str, ...] = ()

    def read(self, given: Any) -> Any:
        """Return a value, or the text of one, as this parameter's type (an int will do for a float); or refuse it."""
        value = given
        if isinstance(given, str) and self.type is not str:
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # it stays a text, and is refused
                value = ast.literal_eval(given.capitalize() if self.type is bool else given)
        if self.type is float and type(value) is int:
            value = float(value)
        # "cuda" stands for "cuda:1" as well: the device is the one choice that can carry a number.
        word = value.split(":")[0] if self.name == "device" and isinstance(value, str) else value
        if type(value) is not self.type or (self.choices and word not in self.choices):
            allowed = "one of " + ", ".join(self.choices) if self.choices else f"of type {self.type.__name__}"
            raise RunnerError(f"{self.name} = {value!r}: this parameter is {allowed} (default {self.default!r})."
                              f"{near(value, self.choices)}")
        return value


def parameters_in(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters of a cell by name; it may hold ``name = literal`` and ``name: type = literal`` alone."""
    try:
        statements, lines = ast.parse(source).body, source.splitlines()
    except SyntaxError as error:
        raise RunnerError(f"{where}: the parameter cell is not Python; line {error.lineno}: {error.msg}.") from None
    found: dict[str, Parameter] = {}
    for statement in statements:
        annotation = ""
        try:
            match statement:
                case ast.Expr(value=ast.Constant()):
                    continue  # a docstring
                case ast.AnnAssign(target=ast.Name(id=name), annotation=noted, value=ast.expr() as value):
                    annotation = ast.unparse(noted)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    pass
                case _:
                    raise ValueError
            default = ast.literal_eval(value)
        except ValueError:
            line = lines[statement.lineno - 1].strip()
            raise RunnerError(f"{where}: the parameter cell may hold plain literals only, not: {line}") from None
        kind = _TYPES.get(annotation, type(default))
        comment = _CHOICES.search(lines[(statement.end_lineno or statement.lineno) - 1])
        choices = tuple(re.split(r"\s*\|\s*", comment[1])) if comment and kind is str else ()
        found[name] = Parameter(name, default, kind, choices)
    return found


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook: the ``path`` of its file and the file's JSON, ``content``."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name without ending, such as ``07_wsam_toy``."""
        return self.path.stem

    @property
    def after_all(self) -> bool:
        """Whether it reads the other notebooks' records, and so runs last."""
        return self.content.get("metadata", {}).get("sharpnb", {}).get("after") == "all"

    @property
    def code(self) -> list[str]:
        """The sources of the code cells, in order."""
        return [_text(cell) for cell in self.content["cells"] if cell["cell_type"] == "code"]

    @property
    def title(self) -> str:
        """The text of the first heading, without the notebook's own number."""
        lines = [line.strip() for cell in self.content["cells"][:1] for line in _text(cell).splitlines()]
        heading = next((line for line in lines if line.startswith("# ")), f"# {self.name}")
        return re.sub(r"^#\s*(\d+\s*[-–—.:·]*\s*)?", "", heading).strip()

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """What the cell tagged ``parameters`` holds; a RunnerError unless there is exactly one, of plain literals."""
        tagged = [cell for cell in self.content["cells"] if "parameters" in cell.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise RunnerError(
                f"{self.path.name} has {len(tagged)} cells tagged 'parameters', and papermill needs exactly one. In "
                f"JupyterLab: select the cell, open the property inspector (gear, top right), edit its tags.")
        return parameters_in(_text(tagged[0]), self.name)

    def values(self, given: Mapping[str, Any], profile: str) -> dict[str, Any]:
        """Return every parameter's value: the default, the profile, or what was given (a value, or its text)."""
        known = self.parameters
        if unknown := [name for name in given if name not in known]:
            raise RunnerError(
                f"{self.name} has no parameter {unknown[0]!r}.{near(unknown[0], known)} It has: {', '.join(known)}. "
                f"Name the notebooks that it is meant for, as in: sharpnb run {self.name[:2]} -p {unknown[0]} VALUE")
        asked = {"profile": profile} if "profile" in known else {}
        values = {name: parameter.default for name, parameter in known.items()}
        values |= {name: known[name].read(value) for name, value in {**asked, **given}.items()}
        if values.get("profile", profile) != profile:
            raise RunnerError(f"profile = {values['profile']!r} contradicts --profile {profile}. Give --profile alone.")
        return values


def find_all() -> list[Notebook]:
    """Return the checkout's notebooks in order, but for what is :func:`passed_over`; RunnerError if there are none."""
    known, others = _found()
    if not known:
        raise RunnerError("\n".join([
            f"There are no notebooks in {paths.notebooks()}. Call this in a checkout, or set SHARPNB_ROOT to one.",
            *others.values()]))
    return known


def passed_over() -> dict[str, str]:
    """Return what lies among the notebooks and cannot be run, by name, with the reason: a scratch, a broken file."""
    return _found()[1]


def _found() -> tuple[list[Notebook], dict[str, str]]:
    known, others = [], {}
    for file in sorted(file for file in paths.notebooks().glob("*.ipynb") if not file.name.startswith(".")):
        try:
            known.append(load(file))
            _ = known[-1].parameters
        except RunnerError as error:
            others[file.stem] = str(error)
    return [notebook for notebook in known if notebook.name not in others], others


def load(path: Path) -> Notebook:
    """Read one notebook; a RunnerError if it is none of format 4."""
    try:
        found = Notebook(path, json.loads(path.read_text(encoding="utf-8")))
        _ = found.code, found.title, found.after_all  # format 4 has cells of these kinds
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunnerError(f"{path} cannot be read as a notebook ({type(error).__name__}: {error}). "
                          f"Bring back the committed one: git checkout -- {path.name}") from None
    return found


def select(names: list[str] | None) -> list[Notebook]:
    """Return the notebooks that ``names`` mean (all without names): a number, a name, or a path."""
    if not names:
        return find_all()
    known, others = _found()
    there = [*(notebook.name for notebook in known), *others]
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        number = f"{stem.zfill(2)}_" if stem.isdigit() else "\0"
        meant = [stem] if stem in there else [each for each in there if each.startswith(number)]
        if len(meant) > 1:
            raise RunnerError(f"{name!r} means more than one notebook: {', '.join(meant)}. Give the whole name.")
        if not meant or meant[0] in others:
            raise RunnerError(others[meant[0]] if meant else f"There is no notebook {name!r}.{near(stem, there)} "
                              f"These are there: {', '.join(there)}.")
        chosen.update(meant)
    return [notebook for notebook in known if notebook.name in chosen]


def _text(cell: dict[str, Any]) -> str:
    return "".join(cell.get("source", ""))
