"""What a result depends on, component by component, so that a re-run can say why.

A notebook is executed again when one of these differs from its last successful run: the code cells (not the text, not
the outputs), the parameters, each file of the package and of the studies that it reaches, the data sets that it names,
the installed versions, Python's minor version, the class of device; or when something that it wrote is gone or was
changed by another hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sharpnb import datafiles, paths, sources
from sharpnb.runner.catalogue import Notebook, find_all

_PARTS = ("code", "parameters", "sources", "data", "records", "versions", "python", "device")
_PLAIN = {"code": "the notebook's code", "python": "Python", "device": "the device"}
_NAMED = {"parameters": "parameter ", "data": "data set ", "records": "", "sources": "", "versions": ""}


def key(notebook: Notebook, values: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """Return the components of what one run of ``notebook`` with these parameter values depends on."""
    reached = sources.digests(notebook.code)
    return {
        "code": hashlib.sha256(json.dumps(notebook.code).encode()).hexdigest()[:16],
        "parameters": {name: repr(value) for name, value in values.items()},
        "sources": reached,
        "data": _data(notebook.code, values, reached),
        "records": _others(notebook.name) if notebook.after_all else {},
        "versions": dict(_versions(paths.root())),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "device": device_class(profile, str(values.get("device", "auto"))),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs between two keys, one short phrase each; empty when nothing does."""
    said = []
    for part in _PARTS:
        before, after = old.get(part), new[part]
        if before == after:
            continue
        if not isinstance(before, dict) or not isinstance(after, dict):
            said.append(f"{_PLAIN[part]} changed" + ("" if part == "code" else f": {before} → {after}"))
            continue
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                said.append(_NAMED[part] + _phrase(part, name, before.get(name), after.get(name)))
    return said


def written(notebook: str, profile: str) -> dict[str, str]:
    """Return what a run has written, its records and figures, with their digests.

    The figures of the full profile lie in a folder ``full`` beside those of the quick one.
    """
    figures, full = paths.figures(notebook), paths.figures(notebook) / "full"
    drawn = _files(full) if profile == "full" else [file for file in _files(figures) if not file.is_relative_to(full)]
    files = [*_files(paths.records(notebook, profile)), *drawn]
    return {file.relative_to(paths.root()).as_posix(): sources.digest(file) for file in files}


def missing(wrote: Mapping[str, str]) -> list[str]:
    """Say which of the files that a run wrote are gone or were changed since."""
    said = []
    for name, mark in wrote.items():
        file = paths.root() / name
        if not file.exists():
            said.append(f"{name} is missing")
        elif sources.digest(file) != mark:
            said.append(f"{name} was changed since")
    return said


def device_class(profile: str, device: str) -> str:
    """Return what ``device="auto"`` comes to: the CPU in the quick profile, else the GPUs by model, without torch."""
    if device not in ("auto", "cuda"):
        return device
    if profile == "quick" and device == "auto":
        return "cpu"
    return _gpus() or "cpu"


@cache
def _gpus() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(sorted(set(answer.stdout.split("\n")) - {""}))


@cache
def _versions(root: Path) -> Mapping[str, str]:
    """Return the installed versions of what pyproject.toml asks for: the core and the ``notebooks`` extra."""
    file = root / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.exists() else {}
    asked = [*project.get("dependencies", []), *project.get("optional-dependencies", {}).get("notebooks", [])]
    found = {}
    for requirement in asked:
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _data(code: list[str], values: Mapping[str, Any], reached: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of the data sets named as strings in the notebook, its parameters or its study."""
    studies = [(paths.root() / name).read_text(encoding="utf-8") for name in reached
               if name.startswith("notebooks/studies/") and name.endswith(".py")]
    quoted = {*re.findall(r"""["'](\w+)["']""", "\n".join([*code, *studies])), *map(str, values.values())}
    return {name: datafiles.fingerprint(name) for name in datafiles.NAMES if name in quoted}


def _others(notebook: str) -> dict[str, str]:
    """Return the digests of what a page about all others reads: their records, their opening cells."""
    folder = paths.root() / "data" / "records"
    own = folder / notebook
    records = {
        file.relative_to(paths.root()).as_posix(): sources.digest(file)
        for file in _files(folder) if not file.is_relative_to(own)
    }
    titles = {f"notebooks/{other.name}.ipynb": other.title for other in find_all() if other.name != notebook}
    return {**records, **titles}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def _phrase(part: str, name: str, before: str | None, after: str | None) -> str:
    if part == "sources" and before is None:
        return f"{name} is imported now"
    if after is None:
        return f"{name} is gone" if part == "records" else f"{name} is no longer used"
    if part == "parameters" or part == "versions":
        return f"{name}: {before} → {after}"
    return f"{name} changed" if before is not None else f"{name} is new"
