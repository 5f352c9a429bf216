"""Which sources a notebook runs: the files that its code imports, directly or through one another.

These are files of the package, of ``notebooks/studies``, ``recipes`` and ``site``. Syntax trees tell them, and nothing
is imported. Imports inside functions count, and those for type checkers, behind which ``sharpnb/lab/__init__.py`` has
what it imports when it is first asked for; a name put together at run time does not.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import sharpnb
from sharpnb import paths


def package_folder() -> Path:
    """Return the folder of the package that the kernels import: the checkout's own, else the installed one."""
    own = paths.root() / "sharpnb"
    return own if (own / "__init__.py").exists() else Path(sharpnb.__file__).parent


def digests(code: list[str]) -> dict[str, str]:
    """Return ``{"sharpnb/rules.py": sha256, "notebooks/studies/swa.py": …}`` of every file that the code cells reach.

    Files of other kinds in the package count when anything of it is reached; those beside the studies likewise.
    """
    roots = package_folder().parent, paths.notebooks(), paths.root() / "recipes", paths.root() / "site"
    seen = _reached((name for cell in code for name in _imported(_tree(cell), "")), roots)
    for folder in (package_folder(), paths.notebooks() / "studies"):
        if any(file.is_relative_to(folder) for file in seen):
            code_files = {".py", ".pyc", ".partial"}
            seen |= {file for file in folder.rglob("*.*") if file.suffix not in code_files and file.is_file()}
    bases = package_folder().parent, paths.root()  # the one or the other, for people
    return {file.relative_to(next(base for base in bases if file.is_relative_to(base))).as_posix(): digest(file)
            for file in sorted(seen)}


def mark(code: list[str]) -> str:
    """Return one digest, 16 digits, of every file that code reaches and of the functions that it defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    own = [ast.unparse(node) for cell in code for node in _tree(cell).body if isinstance(node, kinds)]
    return hashlib.sha256(json.dumps([digests(code), own]).encode()).hexdigest()[:16]


def of_notebook(name: str) -> str:
    """Return the :func:`mark` of the code in ``notebooks/<name>.ipynb``, of all of ``lab`` where it is not there."""
    return mark(code_of(paths.notebooks() / f"{name}.ipynb") or ["import sharpnb.lab"])


def code_of(file: Path) -> list[str]:
    """Return the code cells of a notebook, nothing where it cannot be read."""
    try:
        return code_in(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []


def code_in(text: str) -> list[str]:
    """Return the code cells of a notebook's text, nothing where it is none."""
    try:
        cells = json.loads(text)["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        return []


def digest(file: Path) -> str:
    """Return the sha256 of a file's content, first 16 hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _tree(code: str) -> ast.Module:
    """Parse code; lines of IPython's own (``%magic``, ``!shell``) are passed over."""
    for text in (code, re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code)):
        try:
            return ast.parse(text)
        except SyntaxError:
            continue
    return ast.Module(body=[], type_ignores=[])  # it will fail when it runs, and say so better there


def _reached(names: Iterable[str], roots: Sequence[Path]) -> set[Path]:
    """Return the files below ``roots`` that stand behind modules' full names, and all that they import."""
    waiting, looked, seen = {*names}, set[str](), set[Path]()
    while waiting:
        name = waiting.pop()
        looked.add(name)
        for stem in (root.joinpath(*name.split(".")) for root in roots):
            for file in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
                if file.is_file():
                    seen.add(file)
                    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
                    waiting |= {*_imported_by(file, file.stat().st_mtime_ns, package)} - looked
    return seen


@cache
def _imported_by(file: Path, changed: int, package: str) -> tuple[str, ...]:
    """Return what a file of ``package`` imports; ``changed`` (its time of change) keeps the cache honest."""
    return tuple(_imported(_tree(file.read_text(encoding="utf-8")), package))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the full names, with those above each, of what ``tree`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _above(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield from _above(f"{base}.{alias.name}")


def _above(name: str) -> Iterator[str]:
    """Yield a module's full name and those of the packages above it."""
    parts = name.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))
