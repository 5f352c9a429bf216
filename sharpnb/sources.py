"""Which sources a notebook runs: the files that its code imports, directly or through one another.

These are files of the package, of ``notebooks/studies`` and of ``recipes``. They are found from the syntax trees,
without importing anything. Imports inside functions count, and so does a string that spells a module's full name
(``importlib.import_module("sharpnb.lab")``); a name put together at run time does not. What a package imports when it
is first asked for (``lab.train_many``) counts where it is asked for.
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

_PACKAGE, _STUDIES = "sharpnb", "studies"
_MODULE_NAME = re.compile(rf"(?:{_PACKAGE}|{_STUDIES})(\.\w+)+")


def package_folder() -> Path:
    """Return the folder of the package that the kernels import: the checkout's own, else the installed one."""
    own = paths.root() / _PACKAGE
    return own if (own / "__init__.py").exists() else Path(sharpnb.__file__).parent


def digests(code: list[str]) -> dict[str, str]:
    """Return ``{"sharpnb/rules.py": sha256, "notebooks/studies/swa.py": …}`` of every file that the code cells reach.

    Files of other kinds in the package (a style sheet, say) count when anything of the package is reached: nothing
    static tells who opens them. Those beside the studies likewise.
    """
    places = _places()
    tops = frozenset(places)
    cells = ast.Module(body=[node for cell in code for node in _tree(cell).body], type_ignores=[])
    waiting = {*_imported(cells, "", tops)}
    looked: set[str] = set()
    seen: set[Path] = set()
    while waiting:
        name = waiting.pop()
        looked.add(name)
        above, _, last = name.rpartition(".")
        file = _file(name, places[name.split(".")[0]])
        if file is None and above:  # a name in a module, which may be one that it imports when it is first asked for
            package = _file(above, places[name.split(".")[0]])
            waiting |= {*(_later(package, package.stat().st_mtime_ns).get(last, ()) if package else ())} - looked
        elif file is not None and file not in seen:
            seen.add(file)
            package = name if file.name == "__init__.py" else above
            waiting |= {*_imported_by(file, file.stat().st_mtime_ns, package, tops)} - looked
    for folder in (places[_PACKAGE] / _PACKAGE, places[_STUDIES] / _STUDIES):
        if any(file.is_relative_to(folder) for file in seen):
            code_files = {".py", ".pyc", ".partial"}
            seen |= {file for file in folder.rglob("*.*") if file.suffix not in code_files and file.is_file()}
    return {_label(file): digest(file) for file in sorted(seen)}


def _places() -> dict[str, Path]:
    """Return where each module lies that is tracked: the package, the studies, and the recipes that a study imports."""
    recipes = paths.root() / "recipes"
    return {**{file.stem: recipes for file in recipes.glob("*.py")},
            _PACKAGE: package_folder().parent, _STUDIES: paths.notebooks()}


def _label(file: Path) -> str:
    """Return a file's name for people: seen from the checkout, or from where the package is installed."""
    for base in (package_folder().parent, paths.root()):
        if file.is_relative_to(base):
            return file.relative_to(base).as_posix()
    return file.as_posix()


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
def _imported_by(file: Path, changed: int, package: str, tops: frozenset[str]) -> tuple[str, ...]:
    """Return what a file of ``package`` imports; ``changed`` (its time of change) keeps the cache honest."""
    return tuple(_imported(_tree(file.read_text(encoding="utf-8")), package, tops))


def _imported(tree: ast.Module, package: str, tops: frozenset[str]) -> Iterator[str]:
    """Yield the full names, with those above each, of what ``tree`` imports below ``tops`` or uses of its imports."""
    known: dict[str, str] = {}  # a name in this code, and what it stands for
    found: set[str] = set()
    for node in _executed(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
                known |= {alias.asname: alias.name for alias in names if alias.asname}
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parts, *([module] if module else [])])
                # `import *` brings the submodules of __all__ along only if __init__ imports them, which is followed.
                own = {alias.asname or alias.name: f"{base}.{alias.name}" for alias in names}
                found, known = found | {*own.values()}, known | own
            case ast.Constant(value=str(text)) if _MODULE_NAME.fullmatch(text):
                found.add(text)
    for node in _executed(tree):
        first, _, rest = _dotted(node).partition(".")
        if rest:
            found.add(f"{known.get(first, first)}.{rest}")
    for name in found:
        parts = name.split(".")
        if parts[0] in tops:
            yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but what stands under ``if TYPE_CHECKING``, which only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if _for_type_checkers(node):
            continue
        yield node
        yield from _executed(node)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _dotted(node.test).rpartition(".")[2] == "TYPE_CHECKING"


def _dotted(node: ast.AST) -> str:
    """Return ``"lab.models.mlp"`` for that chain of names, and nothing for another node."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            before = _dotted(value)
            return f"{before}.{name}" if before else ""
    return ""


@cache
def _later(file: Path, changed: int) -> dict[str, tuple[str, ...]]:
    """Return which modules stand behind the names that a package imports when they are first asked for.

    They are those that it imports under ``if TYPE_CHECKING``, as ``sharpnb/lab/__init__.py`` does.
    """
    blocks = [node for node in _tree(file.read_text(encoding="utf-8")).body if _for_type_checkers(node)]
    imports = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (node.module or "",) for node in imports for alias in node.names}


def _file(module: str, place: Path) -> Path | None:
    """Return the file of a module, or None where the name is not one (a function in a module, say)."""
    stem = place.joinpath(*module.split("."))
    for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
        if file.is_file():
            return file
    return None
