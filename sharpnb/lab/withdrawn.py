"""Committed results that count no longer: which, since when and why, as ``data/withdrawn.toml`` has it.

The file of a withdrawn record stays, for it is history. Nothing that rests on it is judged: its claims read "not run
(withdrawn: why)" in every table. An entry names the commit that made the void record and holds for no other, so a
record that is made again is judged again. ``sharpnb report`` refuses an entry that holds for nothing.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from sharpnb import paths

_FILE = "data/withdrawn.toml"


@dataclass(frozen=True)
class Withdrawal:
    """One entry of the table.

    Attributes:
        record: ``<notebook>/<profile>/<name>``, e.g. ``"08_wsam_gamma/full/gamma"``.
        commit: that made the void record, as its provenance has it.
        date: of the withdrawal.
        why: the reason, a sentence without its full stop.
        claims: patterns of the ids of the notebook's claims that rest on it, of the record's profile; by default all.
    """

    record: str
    commit: str
    date: str
    why: str
    claims: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.record.count("/") != 2 or not self.why.strip():
            raise ValueError(f"record = {self.record!r}, why = {self.why!r}; the first is notebook/profile/name, the "
                             "second a reason")

    @property
    def commits(self) -> set[str]:
        """The commits that made the committed record and its pieces; none where there is no such record."""
        notebook, profile, name = self.record.split("/")
        try:
            text = (paths.records(notebook, profile) / f"{name}.json").read_text(encoding="utf-8")
            made: dict[str, Any] = json.loads(text)["provenance"]
        except (OSError, ValueError, KeyError):
            return set()
        return {*filter(None, [made.get("commit"), *(piece.get("commit") for piece in made.get("pieces", []))])}

    @property
    def holds(self) -> bool:
        """Whether the committed record, or a piece of it, is still the void one."""
        return self.commit in self.commits

    def names(self, notebook: str, profile: str, claim: str) -> bool:
        """Return whether a claim, by its id, rests on the record."""
        return self.record.startswith(f"{notebook}/{profile}/") and any(fnmatchcase(claim, p) for p in self.claims)

    def __str__(self) -> str:
        part = "" if "*" in self.claims else f" in part ({', '.join(self.claims)})"
        return f"{self.record} of commit {self.commit} was withdrawn{part}: {self.why}."


def listed(name: str, kind: str, make: Callable[[Any], Any]) -> list[Any]:
    """Return what is made of each ``[[kind]]`` of a TOML file of the checkout, nothing where there is no such file.

    Raises:
        ValueError: if it cannot be read; the message says why.
    """
    file = paths.root() / name
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")).get(kind, []) if file.is_file() else []
        return [make(entry) for entry in found]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {error}); its head says what an entry "
                         "holds.") from None


def entries(record: str | None = None) -> list[Withdrawal]:
    """Return the entries of the table, or those for a record."""
    known = listed(_FILE, "withdrawn", lambda entry: Withdrawal(
        **{**entry, "date": f"{entry['date']}", "claims": tuple(entry.get("claims", "*"))}))
    return [entry for entry in known if record in (None, entry.record)]


def of(notebook: str, profile: str, name: str) -> list[Withdrawal]:
    """Return the entries that hold for the committed record of this name."""
    return [entry for entry in entries(f"{notebook}/{profile}/{name}") if entry.holds]


def why(notebook: str, profile: str, claim: str) -> str:
    """Return why a claim, by its id, is withdrawn; nothing where it is not."""
    return next((entry.why for entry in entries() if entry.names(notebook, profile, claim) and entry.holds), "")
