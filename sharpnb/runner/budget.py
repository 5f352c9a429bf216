"""The time that a run may take, and the plan of the full profile that was written beforehand."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from sharpnb import paths
from sharpnb.runner.errors import RunnerError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Read a duration such as ``90s``, ``25m`` or ``1.5h``.

    Raises:
        RunnerError: for anything else, and for no time at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or not float(match[1]):
        raise RunnerError(f"--budget {text}: give a number above 0 and its unit, s, m or h, as in 90s, 25m or 1h.")
    return float(match[1]) * _UNITS[match[2]]


def plan() -> dict[str, dict[str, Any]]:
    """Return what ``data/full_budget.toml`` says of each notebook, in the order of their value; empty without it."""
    return _plan(paths.root() / "data" / "full_budget.toml")


@cache
def _plan(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    try:
        return {entry["notebook"]: entry for entry in tomllib.loads(file.read_text(encoding="utf-8"))["notebook"]}
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise RunnerError(f"{file} is damaged ({error}). Make it anew: python -m sharpnb.lab.budget") from None
