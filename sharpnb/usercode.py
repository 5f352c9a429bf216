"""A user's file runs where it lives: its neighbours, its package, its own ``argv``.

``train.py:build`` names an attribute of a file, ``package.train:build`` one of a module in the working folder or among
the installed ones. The file's folder stands first on ``sys.path`` while its code runs, or the folder of its package, as
under ``python -m``; relative imports find the package; what the command was called with is not what the file parses.

A neighbour may be called like a module of Python or of a package: ``random.py``, ``datasets/``. The user's files then
import the neighbour and everybody else imports the other. Such a neighbour lives in ``sys.modules`` under a name of its
own, and the user's files get an ``import`` statement that knows it. Where no name is shadowed nothing of this happens.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from glob import glob
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from sharpnb.near import near, told

_importing: list[str] = []


@dataclass(frozen=True)
class Found:
    """What a text, ``spec``, such as ``train.py:build`` names; called, it runs where it lives.

    Messages begin with ``what`` it is for: ``"model"``. The user's ``file`` is ``None`` for an installed module.
    """

    spec: str
    what: str
    value: Any
    file: Path | None

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it; a ValueError says where it raises."""
        with _at_home(self.spec, self.file), _told(self.spec, self.what, self.file):
            return self.value(*given, **named)


def find(spec: str, what: str) -> Found:
    """Return what ``module:attribute`` or ``file.py:attribute`` names; a ValueError says where that fails."""
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"{what} {spec!r}: write module:function or file.py:function.")
    file = _file(place)
    if place.endswith(".py") and file is None:
        raise ValueError(f"{what} {spec!r}: there is no {place!r} here ({Path.cwd()}). A worker on another "
                         "machine needs it at the same place, in a folder that both share, or an installed package.")
    with _at_home(spec, file), _told(spec, what, file):
        _importing.append(place)
        try:
            found: Any = importlib.import_module(place) if file is None else _home(file).module(file)
        finally:
            _importing.pop()
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {spec!r}: {place} has no {part!r}.{near(part, dir(found))}")
        found = getattr(found, part)
    return Found(spec, what, found, file)


def importing() -> str | None:
    """Return the user's file or module that is being imported at this moment, if there is one."""
    return _importing[-1] if _importing else None


def absolute(spec: str, folder: Path | None = None) -> str:
    """Return ``spec`` as another process finds it: a file of ``folder`` or of the working folder by its whole path."""
    place, _, attribute = spec.rpartition(":")
    file = ((folder and _file(place, folder)) or _file(place)) if place else None
    return spec if file is None else f"{file}:{attribute}"


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start worker processes that run neither the caller's script again nor its ``random.py`` in place of Python's.

    Python runs the script to find its functions: one without ``if __name__ == "__main__":`` would start its work once
    more in each of them. And it looks for its own modules in the working folder first (``PYTHONSAFEPATH`` forbids it).
    Ctrl-C, which a terminal sends to them too, is for the caller, who ends them.
    """
    main, safe = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    deaf = threading.current_thread() is threading.main_thread()
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN) if deaf else None
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if deaf:
            signal.signal(signal.SIGINT, heard or signal.SIG_DFL)
        sys.modules["__main__"] = main
        os.environ.pop("PYTHONSAFEPATH")
        os.environ.update({} if safe is None else {"PYTHONSAFEPATH": safe})


@cache
def digest(spec: str) -> str:
    """Return a mark of the files that ``spec`` has imported: the user's, of what is installed the package's own."""
    found, top, ours = find(spec, "name"), spec.partition(":")[0].partition(".")[0], os.path.dirname(__file__)
    loaded = {str(getattr(module, "__file__", None)): name.partition(".")[0] for name, module in sys.modules.items()}
    if found.file is None:
        files = {file for file in loaded if loaded[file] == top}
    else:
        home, main = _home(found.file), getattr(sys.modules["__main__"], "__file__", None)
        own = {file for file in loaded if home.holds(file) and "-packages" not in file and not file.startswith(ours)}
        files = own - {str(main)} | {str(found.file)}
    mark = hashlib.sha256()
    for file in sorted(filter(os.path.isfile, files)):
        mark.update(Path(file).read_bytes())
    return mark.hexdigest()[:32]


def _file(place: str, folder: Path = Path()) -> Path | None:
    """Return the user's file of a place: a path, a module in a folder, or the script that runs."""
    if place.partition(".")[0] == __package__:
        return None  # in a checkout, where it lies in the working folder
    if place == "__main__":
        paths = [Path(getattr(sys.modules["__main__"], "__file__", None) or "no file")]
    elif place.endswith(".py"):
        paths = [folder / Path(place).expanduser()]
    else:
        path = folder.joinpath(*place.split("."))
        paths = [path.with_suffix(".py"), path / "__init__.py"]
    return next((Path(os.path.abspath(path)) for path in paths if path.is_file()), None)


# ---- Where a file lives ---------------------------------------------------------------------------------------------


class _Home:
    """A folder of a user's files, and of the packages that they are in.

    Attributes:
        root: where the file's module name begins: the file's folder, or the folder of its package.
        folders: root, and the file's folder where it is another one.
        shadowed: names of modules in root that exist elsewhere too.
    """

    def __init__(self, folder: str, root: str) -> None:
        self.root, self.folders = root, list(dict.fromkeys((root, folder)))
        self.alias = "_user_" + hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
        there = {os.path.dirname(file) or file.removesuffix(".py")
                 for pattern in ("*.py", "*/__init__.py") for file in glob(pattern, root_dir=root)}
        self.shadowed = {name for name in there if name.isidentifier() and self._is_elsewhere(name)}
        if self.shadowed and self.alias not in sys.modules:
            package = ModuleType(self.alias)
            package.__path__ = [root]
            sys.modules[self.alias] = package
            sys.meta_path.insert(0, _Finder(self))

    def module(self, file: Path) -> ModuleType:
        """Import one of its files."""
        name = ".".join(_dotted(file))
        top = name.partition(".")[0]
        return importlib.import_module(f"{self.alias}.{name}" if top in self.shadowed else name)

    def holds(self, file: str | None) -> bool:
        """Whether a file is one of its modules."""
        return file is not None and file.startswith(tuple(os.path.join(folder, "") for folder in self.folders))

    def elsewhere(self) -> list[str]:
        """Return ``sys.path`` without its folders."""
        own = {os.path.realpath(folder) for folder in self.folders}
        return [part for part in sys.path if os.path.realpath(part) not in own]

    def _is_elsewhere(self, name: str) -> bool:
        if name in sys.modules:
            spec = getattr(sys.modules[name], "__spec__", None)
            return not self.holds(getattr(sys.modules[name], "__file__", None) or (spec and spec.origin))
        return name in sys.stdlib_module_names or PathFinder.find_spec(name, self.elsewhere()) is not None

    def imported(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """Be the ``import`` statement of its files: a shadowing neighbour comes first."""
        if level or name.partition(".")[0] not in self.shadowed:
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = builtins.__import__(f"{self.alias}.{name}", globals, locals, fromlist or (), 0)
        return found if fromlist else sys.modules[f"{self.alias}.{name.partition('.')[0]}"]


class _Finder:
    """Finds the modules of a home that shadow others: for its own files alone."""

    def __init__(self, home: _Home) -> None:
        self.home = home

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Return a module's spec, or ``None`` for the next finder."""
        if path is None and name in self.home.shadowed:
            return PathFinder.find_spec(name, self.home.elsewhere())
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader and self.home.holds(spec.origin):
            spec.loader = _Loader(self.home, spec.loader.name, spec.loader.path)
            return spec
        return None


class _Loader(SourceFileLoader):
    """Loads a file of a home, with the ``import`` statement that knows its neighbours."""

    def __init__(self, home: _Home, name: str, path: str) -> None:
        super().__init__(name, path)
        self.home = home

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code."""
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self.home.imported}
        super().exec_module(module)


_made = cache(_Home)


def _home(file: Path) -> _Home:
    root = file.parents[len(_dotted(file)) - (file.name != "__init__.py")]
    return _made(str(file.parent), str(root))


@cache
def _dotted(file: Path) -> tuple[str, ...]:
    """Return the parts of a file's module name: its packages', as ``__init__.py`` and relative imports have them."""
    depth = 0
    while (file.parents[depth] / "__init__.py").is_file():
        depth += 1
    depth = min(max(depth, _relative(file)), len(file.parents) - 1)
    parts = file.parts[len(file.parts) - 1 - depth:-1]
    return parts if file.name == "__init__.py" else (*parts, file.stem)


def _relative(file: Path) -> int:
    """Return how many packages up the relative imports of a file reach."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return 0  # told when it is imported
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


@contextmanager
def _at_home(spec: str, file: Path | None) -> Iterator[None]:
    """Put the file's root first on ``sys.path``, the other folders last, and its name alone into ``sys.argv``.

    Afterwards they all stand last, for what its functions import and for worker processes.
    """
    home, argv = None if file is None else _home(file), sys.argv
    sys.argv = [str(file or spec.rpartition(":")[0])]
    if home is not None:
        sys.path.insert(0, home.root)
        sys.path += [folder for folder in (*home.folders, os.getcwd()) if folder not in sys.path]
    try:
        yield
    finally:
        sys.argv = argv
        if home is not None and home.root in sys.path:
            sys.path.remove(home.root)
            sys.path += [] if home.root in sys.path else [home.root]


@contextmanager
def _told(spec: str, what: str, file: Path | None) -> Iterator[None]:
    """Turn what a user's code raises into a sentence that names the file and the line."""
    try:
        yield
    except SystemExit as error:
        raise ValueError(
            f"{what} {spec!r}: {_where(error, file)} ended the program (status {error.code}). It is imported, and not "
            "run: it gets no arguments. Put what it does when it is run under if __name__ == \"__main__\":") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} {spec!r}: there is no {error.name!r} here ({Path.cwd()}) or among the installed "
                         f"packages{', ' + _where(error, file) if file else ''}.") from error
    except Exception as error:
        raise ValueError(f"{what} {spec!r}: {_where(error, file)}: {told(error)}") from error


def _where(error: BaseException, file: Path | None) -> str:
    """Return the user's file and line that an error came through last."""
    place, trace = str(file or "it"), error.__traceback__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    home = None if file is None else _home(file)
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if home is None or home.holds(name):
            place = f"{name}, line {trace.tb_lineno}" if not name.startswith("<") else place
        trace = trace.tb_next
    return place
