"""The notebooks of the checkout: their names, what they say of themselves, their parameters.

Read as plain JSON: importing nbformat takes longer than reading all of them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sharpnb import paths
from sharpnb.runner import parameters
from sharpnb.runner.errors import RunnerError, nearest

_FIGURES = re.compile(
    r"\b(?:Supp)?(?:Figs?\.?|Figures?|Tables?|Propositions?)\s+\d+(?:(?:\s*[,–-]\s*|\s+(?:and|to)\s+)\d+)*"
    r"(?:\s+(?:left|middle|right))?"
)


@dataclass(frozen=True)
class Notebook:
    """One numbered notebook.

    Attributes:
        path: of the ``.ipynb`` file.
        content: the file's JSON.
    """

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
        heading = next((line for line in self._opening if line.startswith("# ")), f"# {self.name}")
        return re.sub(r"^#\s*(\d+\s*[-–—.:·]*\s*)?", "", heading).strip()

    @property
    def reproduces(self) -> str:
        """The figures, tables and propositions that the first cell names first, on one line: ``Fig. 2, Table 3``."""
        lines = (_FIGURES.findall(line) for line in self._opening if not line.startswith("#"))
        return ", ".join(dict.fromkeys(next(filter(None, lines), [])))

    @cached_property
    def parameters(self) -> dict[str, parameters.Parameter]:
        """What the cell tagged ``parameters`` holds.

        Raises:
            RunnerError: unless exactly one such cell is there, with plain literals.
        """
        tagged = [cell for cell in self.content["cells"] if "parameters" in cell.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise RunnerError(
                f"{self.path.name} has {len(tagged)} cells tagged 'parameters', and papermill needs exactly one. In "
                f"JupyterLab: select the cell, open the property inspector (gear, top right), edit its tags."
            )
        return parameters.read(_text(tagged[0]), self.name)

    @property
    def _opening(self) -> list[str]:
        cells = self.content["cells"]
        return [line.strip() for line in _text(cells[0]).splitlines()] if cells else []


def find_all() -> list[Notebook]:
    """Return the checkout's notebooks in order; what is :func:`passed_over` is left out.

    Raises:
        RunnerError: if there are none.
    """
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
            notebook = load(file)
            _ = notebook.parameters
        except RunnerError as error:
            others[file.stem] = str(error)
        else:
            known.append(notebook)
    return known, others


def load(path: Path) -> Notebook:
    """Read one notebook.

    Raises:
        RunnerError: if it is no notebook of format 4.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = Notebook(path, content)
        _ = found.code, found.title, found.reproduces, found.after_all  # format 4 has cells of these kinds
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunnerError(
            f"{path} cannot be read as a notebook ({type(error).__name__}: {error}). "
            f"Bring back the committed one: git checkout -- {path.name}"
        ) from None
    return found


def select(names: list[str] | None) -> list[Notebook]:
    """Return the notebooks that ``names`` mean (all without names): a number, a name, or a path.

    Raises:
        RunnerError: for a name that no notebook, or more than one, answers to, or whose notebook cannot be run.
    """
    if not names:
        return find_all()
    known, others = _found()
    chosen = {_match(name, known, others).name for name in names}
    return [notebook for notebook in known if notebook.name in chosen]


def _match(name: str, known: list[Notebook], others: dict[str, str]) -> Notebook:
    stem = Path(name).name.removesuffix(".ipynb")
    if stem in others:
        raise RunnerError(others[stem])
    exact = [notebook for notebook in known if notebook.name == stem]
    number = stem.zfill(2) if stem.isdigit() else None
    found = exact or [notebook for notebook in known if notebook.name.split("_")[0] == number]
    if len(found) == 1:
        return found[0]
    stems = [notebook.name for notebook in found or known]
    if found:
        raise RunnerError(f"{name!r} means more than one notebook: {', '.join(stems)}. Give the whole name.")
    meant = [reason for other, reason in others.items() if number and other.split("_")[0] == number]
    if meant:
        raise RunnerError("\n".join(meant))
    hint = nearest(stem, stems)
    raise RunnerError(f"There is no notebook {name!r}.{hint} These are there: {', '.join(stems)}.")


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)
