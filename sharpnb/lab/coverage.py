"""What the project's brief names, and where it is shown: a section, a page, a test or a name of the package.

The rows are kept in ``data/coverage.toml``; whether a place exists is looked up, so a row is done only as long as what
it points to is there.
"""

from __future__ import annotations

import json
import pkgutil
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sharpnb import paths

SCOPES = {"C": "core", "B": "ingredient", "M": "named only", "X": "out of reach at its own scale"}
_HEADING = re.compile(r"(?m)^#{1,4} +(.+?) *$")


@dataclass(frozen=True)
class Row:
    """One thing that the brief names.

    Attributes:
        id: as in the brief, such as ``"A7"``.
        scope: one of :data:`SCOPES`.
        what: what it is, in our words.
        shown: places, as :func:`problem` reads them.
        why: what is not shown, and why.
    """

    id: str
    scope: str
    what: str
    shown: tuple[str, ...] = ()
    why: str = ""

    @property
    def done(self) -> bool:
        """Whether it is shown somewhere, and every named place exists."""
        return bool(self.shown) and not any(map(problem, self.shown))


def rows() -> list[Row]:
    """Return the rows of ``data/coverage.toml``; none where the file is not there.

    Raises:
        ValueError: if the file cannot be read; the message says where.
    """
    file = paths.root() / "data" / "coverage.toml"
    if not file.is_file():
        return []
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))["rows"]
        return [Row(**{**row, "shown": tuple(row["shown"])}) for row in content]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"data/coverage.toml cannot be read ({type(error).__name__}: {error}). A row needs id, scope, "
                         "what and shown, and may have why.") from None


def anchor(heading: str) -> str:
    """Return the fragment that JupyterLab, and the site, give to a heading: ``7 Claims`` is at ``#7-Claims``."""
    return re.sub(r"\s", "-", heading.strip())


def fragment(heading: str) -> str:
    """Return ``#`` and the :func:`anchor`; empty for a heading with formulas or code in it."""
    return "" if re.search(r"[$`*]", heading) else f"#{anchor(heading)}"


def headings(path: Path) -> list[str]:
    """Return the headings of a notebook or a Markdown page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return _HEADING.findall(text)


def problem(place: str) -> str:
    """Return what is wrong with a place; empty if it exists.

    Args:
        place: ``01_sam#In PyTorch`` (a notebook's heading without its number), ``site/errata#Printed, and meant``,
            ``tests/unit/test_rules.py::test_sgd_by_hand`` or ``sharpnb.optim.SAM``.
    """
    if "::" in place:
        file, test = place.split("::", 1)
        path = paths.root() / file
        found = path.is_file() and re.search(rf"(?m)^def {re.escape(test)}\(", path.read_text(encoding="utf-8"))
        return "" if found else f"{place}: there is no such test"
    if "#" in place:
        path, heading = _page(place)
        if not path.is_file():
            return f"{place}: there is no {path.name}"
        return "" if heading else f"{place}: {path.name} has no such heading"
    return _name_problem(place)


def link(place: str) -> str:
    """Return a place as Markdown, seen from the project's root."""
    if "::" in place:
        file, test = place.split("::", 1)
        return f"[{test.removeprefix('test_').replace('_', ' ')}]({file})"
    if "#" not in place:
        return f"`{place}`"
    path, heading = _page(place)
    short = place.split("_")[0] if path.suffix == ".ipynb" else path.stem
    return f"[{short}: {place.split('#', 1)[1]}](<{path.relative_to(paths.root()).as_posix()}{fragment(heading)}>)"


def as_markdown(table: Sequence[Row]) -> str:
    """Return how many rows of each scope are done, and the rows with their places."""
    lines = ["| scope | rows | shown |", "|:--|--:|--:|"]
    for scope, name in SCOPES.items():
        of_scope = [row for row in table if row.scope == scope]
        lines.append(f"| {scope}, {name} | {len(of_scope)} | {sum(row.done for row in of_scope)} |")
    lines += [f"| all | {len(table)} | {sum(row.done for row in table)} |", "",
              "| row | what | scope | shown in | not shown |", "|:--|:--|:--|:--|:--|"]
    lines += [
        f"| {row.id} | {row.what} | {row.scope} | {' · '.join(map(link, row.shown)) or '–'} | "
        f"{'' if row.done else '**not yet.** '}{row.why} |" for row in table
    ]
    return "\n".join(lines)


def _page(place: str) -> tuple[Path, str]:
    """Return a place's file and its heading in full, or an empty text where there is none."""
    name, wanted = place.split("#", 1)
    path = paths.root() / (f"{name}.md" if name.startswith("site/") else f"notebooks/{name}.ipynb")
    known = headings(path) if path.is_file() else []
    return path, next((heading for heading in known if re.sub(r"^\d+\s+", "", heading) == wanted), "")


@cache
def _name_problem(name: str) -> str:
    paths.let_studies_be_imported()
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        return f"{name}: {error}"
    return ""
