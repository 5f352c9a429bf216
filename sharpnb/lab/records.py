"""Results that carry where they come from, and the comparison of a fresh result with the committed one."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
import tomllib
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sharpnb import __version__, kept, paths, sources
from sharpnb.lab import withdrawn


class RecordMismatch(AssertionError):
    """A fresh result differs from the committed one by more than its tolerance, or there is no committed one."""


def checking() -> bool:
    """Return whether results are to be compared with the committed ones instead of written (``SHARPNB_CHECK=1``)."""
    return os.environ.get("SHARPNB_CHECK") == "1"


def forced() -> bool:
    """Return whether what is finished already is to be made again (``SHARPNB_FORCE=1``, of ``sharpnb run --force``)."""
    return os.environ.get("SHARPNB_FORCE") == "1"


def keeping(what: str) -> bool:
    """Return whether committed ``records`` or ``figures`` stay where a fresh result agrees within its tolerance.

    The last digits differ between processors. ``SHARPNB_KEEP=1`` (of `sharpnb run`) keeps both, ``0`` (of `--update`)
    neither; without it records are kept, and figures are as just drawn, for whoever works on them in JupyterLab.
    """
    choice = os.environ.get("SHARPNB_KEEP", "")
    return choice == "1" or (choice != "0" and what == "records")


@dataclass
class Record:
    """One result of one notebook under one profile: ``data/records/<notebook>/<profile>/<name>.json``.

    Attributes:
        notebook: e.g. ``"03_hessian_spectra"``.
        name: file name without its ending.
        profile: ``"quick"`` or ``"full"``.
        values: the result: nested dictionaries and lists of numbers, texts and None.
        rtol, atol: how far a number of a repeated run may be off: rtol·|committed| + atol. The default 1e-3 is for
            float64 trainings of some hundred steps on another processor; identities want less, chaotic runs more.
        provenance: parameters, data sets and checksums, versions, device, commit, digest of the sources, times, how
            it was chosen (quick); of the long profiles the settings, and of each piece time, peak memory and device.
    """

    notebook: str
    name: str
    profile: str
    values: dict[str, Any]
    rtol: float = 1e-3
    atol: float = 1e-9
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the record lies."""
        return paths.records(self.notebook, self.profile) / f"{self.name}.json"

    def save(self) -> Path:
        """Write the record whole or not at all; under ``SHARPNB_CHECK=1`` compare it with the committed one instead.

        A reader's own kernel writes to ``data/runs/mine`` (:func:`sharpnb.paths.written`). A result that comes out the
        same keeps the file, and so its first provenance; one of the same parameters and settings also where it agrees
        within its tolerance, see :func:`keeping`. A withdrawn record is replaced. Two provenances give way: under
        ``--update`` one whose sources are in no commit to one whose are; and that of a record that is read back (not
        made live, as the quick profile's) to one of other sources.

        Raises:
            RecordMismatch: in checking mode, when the result differs or nothing is committed.
            ValueError: if a value cannot be written as JSON.
        """
        self.values = kept.plain(self.values)
        if checking():
            if not self.path.exists():
                raise RecordMismatch(f"{self.path.name}: no committed record to compare with; run `sharpnb run "
                                     f"{self.notebook} --force` and commit what it writes.")
            if difference := first_difference(self.load(self.path).values, self.values, self.rtol, self.atol):
                raise RecordMismatch(f"{self.notebook}/{self.profile}/{self.name}.json: {difference}")
            return self.path
        path = paths.written(self.path)
        if not path.exists() or self._is_new(path):
            kept.write(path, asdict(self), indent=1)
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if the file is damaged; the message says what to do.
        """
        try:
            return cls(**kept.read(path))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}). Delete it and run its notebook again: `sharpnb run "
                             f"{path.parent.parent.name} --force`.") from error

    @classmethod
    def find(cls, notebook: str, name: str, profile: str) -> Record | None:
        """Return a committed record, or None where that profile has not been run."""
        path = paths.records(notebook, profile) / f"{name}.json"
        return cls.load(path) if path.exists() else None

    def _is_new(self, path: Path) -> bool:
        try:
            old = Record.load(path)
        except ValueError:
            return True
        before, now, keep = old.provenance, self.provenance, keeping("records")
        same = {part: before.get(part) == now.get(part) for part in ("parameters", "settings", "sources")}
        if (withdrawn.of(self.notebook, self.profile, self.name) or not same["settings"]
                or (self.profile != "quick" and not same["sources"])
                or (not keep and _clean(now) and not _clean(before))):
            return True
        rtol, atol = (self.rtol, self.atol) if keep and same["parameters"] else (0.0, 0.0)
        return first_difference(old.values, self.values, rtol, atol) is not None


def _clean(provenance: dict[str, Any]) -> bool:
    """Whether a provenance says which sources made the result, and in which commit they are."""
    return bool(provenance.get("sources")) and not (provenance.get("commit") or "+").endswith("+")


def first_difference(old: Any, new: Any, rtol: float, atol: float, where: str = "") -> str | None:
    """Say where two nested results first differ by more than rtol·|old| + atol, or return None."""
    place = where or "result"
    if isinstance(old, dict) and isinstance(new, dict):
        if old.keys() != new.keys():
            return f"{place} has other entries: {sorted(set(map(str, old)) ^ set(map(str, new)))}"
        pairs = [(old[key], new[key], f"{where}.{key}".lstrip(".")) for key in old]
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{place} has {len(new)} entries, committed are {len(old)}"
        pairs = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
    elif isinstance(old, int | float) and isinstance(new, int | float) and bool not in (type(old), type(new)):
        same = (math.isnan(old) and math.isnan(new)) or old == new or abs(old - new) <= rtol * abs(old) + atol
        allowed = f" (allowed: {rtol:g} relative + {atol:g})"
        return None if same else f"{place} is {new!r}, committed is {old!r}{allowed}"
    else:
        return None if type(old) is type(new) and old == new else f"{place} is {new!r}, committed is {old!r}"
    return next((found for a, b, name in pairs if (found := first_difference(a, b, rtol, atol, name))), None)


def provenance(
    notebook: str, parameters: dict[str, Any], device: Any, data: dict[str, str], started: float
) -> dict[str, Any]:
    """Return what a reader needs to repeat a result; ``started`` is ``time.time()`` at its beginning."""
    import torch

    from sharpnb.devices import device_name

    return {
        "sharpnb": __version__, "commit": commit(notebook), "sources": sources.of_notebook(notebook),
        "parameters": kept.plain(parameters), "data": data, "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")},
        "device": device_name(device), "threads": torch.get_num_threads(),
        "chosen_by": chosen_by(notebook) if parameters.get("profile") == "quick" else None,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
    }


def chosen_by(notebook: str) -> str | None:
    """Return how a notebook's quick experiment was chosen: its text in ``data/chosen_by.toml``, None without one."""
    file = paths.root() / "data" / "chosen_by.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")).get(notebook) if file.is_file() else None


def commit(notebook: str) -> str | None:
    """Return the checkout's commit (a copy without its history is told it by ``$SHARPNB_COMMIT``); None outside one.

    It ends with ``+`` when code differs that a result of ``notebook`` can depend on: a Python file, or its own cells.
    """
    if told := os.environ.get("SHARPNB_COMMIT"):
        return told
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    file = f"notebooks/{notebook}.ipynb"
    own, committed = sources.code_of(paths.root() / file), sources.code_in(_git("show", f"HEAD:./{file}"))
    changed = _git("status", "--porcelain", "--", "sharpnb", ":(glob)notebooks/**/*.py", "recipes") or own != committed
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    """Return what git says, nothing where it fails or is not there."""
    try:
        return subprocess.run(["git", *arguments], cwd=paths.root(), capture_output=True, encoding="utf-8",
                              timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
