"""Which package sources a notebook runs: the files that its code imports, directly or through one another.

Found from the syntax trees, without importing anything. Imports inside functions count, and so does a string that
spells a module's full name (``importlib.import_module("sharpnb.lab")``); a name put together at run time does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import sharpnb
from sharpnb import paths

_PACKAGE = "sharpnb"
_MODULE_NAME = re.compile(rf"{_PACKAGE}(\.\w+)+")


def package_folder() -> Path:
    """Return the folder of the package that the kernels import: the checkout's own, else the installed one."""
    own = paths.root() / _PACKAGE
    return own if (own / "__init__.py").exists() else Path(sharpnb.__file__).parent


def digests(code: list[str]) -> dict[str, str]:
    """Return ``{"sharpnb/rules.py": sha256, …}`` of every package file that the code cells reach.

    Files of other kinds in the package (a style sheet, say) count when anything of the package is reached: nothing
    static tells who opens them.
    """
    folder = package_folder()
    waiting = {name for cell in code for name in _imported(_tree(cell), "")}
    looked: set[str] = set()
    seen: set[Path] = set()
    while waiting:
        name = waiting.pop()
        looked.add(name)
        file = _file(name, folder)
        if file is not None and file not in seen:
            seen.add(file)
            waiting |= {*_imported_by(file, file.stat().st_mtime_ns, folder)} - looked
    if seen:
        other = {".py", ".pyc", ".partial"}
        seen |= {file for file in folder.rglob("*.*") if file.suffix not in other and file.is_file()}
    return {f"{_PACKAGE}/{file.relative_to(folder).as_posix()}": digest(file) for file in sorted(seen)}


def mark(code: list[str]) -> str:
    """Return one digest, 16 hexadecimal digits, of every file that code reaches and of the functions that it defines.

    What else stands in ``code``, such as the drawing of a figure, does not count.
    """
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


def around(module: str) -> dict[str, str]:
    """Return the digests of a module of one's own and of the files beside it that it imports, also through one another.

    An installed package is followed within itself. A module that is no file, such as one that was typed, gives nothing.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # its package is not there: whoever imports it will say so
        return {}
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return {}
    first = Path(spec.origin)
    root = first.parents[module.count(".") + (first.name == "__init__.py")]
    inside = root / module.split(".")[0] if "site-packages" in root.parts else root
    waiting, seen = [first], {}
    while waiting:
        file = waiting.pop()
        seen[file.relative_to(root).as_posix()] = digest(file)
        packages = [folder for folder in file.parents if folder.is_relative_to(root) and folder != root]
        for stem in (*packages, *_stems(_tree(file.read_text(encoding="utf-8")), file, root)):
            files = [each for each in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if each.is_file()]
            waiting += [each for each in files if each.is_relative_to(inside)
                        and each.relative_to(root).as_posix() not in seen]
    return dict(sorted(seen.items()))


def _stems(tree: ast.Module, file: Path, root: Path) -> Iterator[Path]:
    """Yield the places, without ending, of what a file below ``root`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (root.joinpath(*alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else root
            base = base.joinpath(*(node.module or "").split("."))
            yield from (base, *(base / alias.name for alias in node.names))


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


@cache
def _imported_by(file: Path, changed: int, folder: Path) -> tuple[str, ...]:
    """Return what a package file imports; ``changed`` (its time of change) keeps the cache honest."""
    package = ".".join((_PACKAGE, *file.relative_to(folder).parent.parts))
    return tuple(_imported(_tree(file.read_text(encoding="utf-8")), package))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the full names of modules (and of names in modules, which may be modules too) that ``tree`` imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parts, *([module] if module else [])])
                # `import *` brings the submodules of __all__ along only if __init__ imports them, which is followed.
                found = {f"{base}.{alias.name}" for alias in names}
            case ast.Constant(value=str(text)) if _MODULE_NAME.fullmatch(text):
                found = {text}
            case _:
                continue
        for name in found:
            if name.split(".")[0] == _PACKAGE:
                parts = name.split(".")
                yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _file(module: str, folder: Path) -> Path | None:
    """Return the file of a module, or None where the name is not one (a function in a module, say)."""
    stem = folder.joinpath(*module.split(".")[1:])
    for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
        if file.is_file() and file.is_relative_to(folder):
            return file
    return None
