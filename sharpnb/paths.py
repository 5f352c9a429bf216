"""Where the project's files are, and how a file is written whole or not at all.

No torch here: the command line starts with this module alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PROFILES = ("quick", "mid", "full")


def root() -> Path:
    """Return the project folder: ``$SHARPNB_ROOT``, else the checkout around the working directory, else the package's.

    A checkout holds both ``notebooks/`` and ``sharpnb/``. Without one it is the working directory.
    """
    if chosen := os.environ.get("SHARPNB_ROOT"):
        return Path(chosen).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks").is_dir() and (folder / "sharpnb").is_dir():
            return folder
    return here


def notebooks() -> Path:
    """Return the folder of the numbered notebooks."""
    return root() / "notebooks"


def let_studies_be_imported() -> None:
    """Put the checkout's ``notebooks/`` on ``sys.path``, for ``from studies import …``, ``recipes/``, ``site/`` behind.

    A kernel that was started in ``notebooks/`` finds them anyway; one that papermill has started elsewhere does not.
    Worker processes are given the same ``sys.path``. Without a checkout nothing is changed.
    """
    if (notebooks() / "studies").is_dir():
        for folder in (root() / "site", root() / "recipes", notebooks()):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))


def figures(notebook: str) -> Path:
    """Return the folder of one notebook's committed figures (PNG, SVG and the plotted data as CSV)."""
    return root() / "figures" / notebook


def records(notebook: str, profile: str) -> Path:
    """Return the folder of one notebook's committed results under one profile."""
    return root() / "data" / "records" / notebook / profile


def runs(profile: str) -> Path:
    """Return the folder of executed copies and their keys (ignored by git)."""
    return root() / "data" / "runs" / profile


def readers_own() -> bool:
    """Return whether this is a reader's own kernel: one that neither `sharpnb run` nor the gate has started."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and not {"SHARPNB_KEEP", "SHARPNB_CHECK"} & os.environ.keys()


def written(path: Path) -> Path:
    """Return where what belongs at ``path`` is written: there, from a reader's own kernel under ``data/runs/mine``.

    ``SHARPNB_MINE`` names another folder in the place of ``mine`` (`sharpnb replicate` sets it).
    """
    own = readers_own() and path.is_relative_to(root())
    return runs(os.environ.get("SHARPNB_MINE", "mine")) / path.relative_to(root()) if own else path


def datasets() -> Path:
    """Return the folder of the data sets in torchvision's layout: ``$SHARPNB_DATA``, else ``data/datasets``."""
    chosen = os.environ.get("SHARPNB_DATA")
    return Path(chosen).expanduser().resolve() if chosen else root() / "data" / "datasets"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` so that a reader, or a kill at any moment, meets the old file or the new whole one.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the old file is then still there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.add_note(f"Could not write {path}; what was there before is untouched. Free some space, or choose "
                           "another folder.")
        raise


def version(package: str) -> str:
    """Return the version of an installed package, nothing where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
