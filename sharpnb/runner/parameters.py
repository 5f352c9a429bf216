"""The parameter cell of a notebook, and what may be put in the place of its defaults.

papermill only warns about an unknown name and then runs with the defaults (nteract/papermill#245, #818), so names and
types are checked here before anything runs. The cell is read by its syntax tree: the command line stays quick, and a
line that papermill's own parser would miss is found by the notebook gate.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sharpnb.runner.errors import RunnerError, nearest

_CHOICES = re.compile(r"#\s*(\w[\w.-]*(?:\s*\|\s*\w[\w.-]*)+)\s*(?:[;,.:(].*)?$")
_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple, "dict": dict}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameter cell, such as ``profile: str = "quick"  # quick | full``.

    Attributes:
        name: the variable.
        default: the literal on the right.
        type: of the annotation, or of the literal where there is none.
        choices: the words of a ``# this | that`` comment, else empty.
    """

    name: str
    default: Any
    type: type
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """Read a value typed at the command line as this parameter's type.

        Raises:
            RunnerError: if the text is not of that type or not among the choices.
        """
        if self.type is str:
            return self.check(text)
        try:
            return self.check(_WORDS[text.lower()] if self.type is bool else ast.literal_eval(text))
        except (KeyError, ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: nested too deep
            raise RunnerError(self._wrong(text)) from None

    def check(self, value: Any) -> Any:
        """Return ``value`` as this parameter's type (an int will do for a float).

        Raises:
            RunnerError: if it is of another type or not among the choices.
        """
        if self.type is float and type(value) is int:
            value = float(value)
        # "cuda" stands for "cuda:1" as well: the device is the one choice that can carry a number.
        word = value.split(":")[0] if self.name == "device" and isinstance(value, str) else value
        if type(value) is not self.type or (self.choices and word not in self.choices):
            raise RunnerError(self._wrong(value))
        return value

    def _wrong(self, value: Any) -> str:
        allowed = "one of " + ", ".join(self.choices) if self.choices else f"of type {self.type.__name__}"
        hint = nearest(str(value), self.choices)
        return f"{self.name} = {value!r}: this parameter is {allowed} (default {self.default!r}).{hint}"


def read(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters of a cell by name, in order.

    Raises:
        RunnerError: if a statement is anything but ``name = literal`` or ``name: type = literal``.
    """
    found: dict[str, Parameter] = {}
    lines = source.splitlines()
    for statement in _parse(source, where).body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        try:
            name, default, annotation = _binding(statement)
        except ValueError:
            line = lines[statement.lineno - 1].strip()
            raise RunnerError(f"{where}: the parameter cell may hold plain literals only, not: {line}") from None
        kind = _TYPES.get(annotation, type(default))
        comment = _CHOICES.search(lines[(statement.end_lineno or statement.lineno) - 1])
        choices = tuple(re.split(r"\s*\|\s*", comment.group(1))) if comment and kind is str else ()
        found[name] = Parameter(name, default, kind, choices)
    return found


def effective(known: Mapping[str, Parameter], given: Mapping[str, Any], profile: str, where: str) -> dict[str, Any]:
    """Return every parameter's value: the default, the profile, or what was given (a typed value, or text to be read).

    Raises:
        RunnerError: for a name that the notebook does not have, or a value that the parameter does not take.
    """
    for name in given:
        if name not in known:
            raise RunnerError(
                f"{where} has no parameter {name!r}.{nearest(name, known)} It has: {', '.join(known)}. Name the "
                f"notebooks that the parameter is meant for, for example: sharpnb run {where[:2]} -p {name} VALUE"
            )
    values = {name: parameter.default for name, parameter in known.items()}
    if "profile" in known:
        values["profile"] = known["profile"].check(profile)
    for name, value in given.items():
        values[name] = known[name].parse(value) if isinstance(value, str) else known[name].check(value)
    if "profile" in known and values["profile"] != profile:
        raise RunnerError(f"profile = {values['profile']!r} contradicts --profile {profile}. Give --profile alone.")
    return values


def _binding(statement: ast.stmt) -> tuple[str, Any, str]:
    """Return name, literal and annotation of one assignment; ValueError for anything else."""
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            return name, ast.literal_eval(value), ast.unparse(annotation)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value), ""
    raise ValueError(ast.unparse(statement))


def _parse(source: str, where: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise RunnerError(f"{where}: the parameter cell is not Python; line {error.lineno}: {error.msg}.") from None
