"""All claims of all notebooks in one table: what the papers state, what was measured, the verdict.

Everything is read from ``data/records/<notebook>/<profile>/claims.json``; nothing is typed by hand, and equal records
give equal text. ``site/report.py`` makes the pages of it, the notebook ``00_index`` shows it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharpnb import paths
from sharpnb.lab.claims import SYMBOLS, in_words

_HEAD = ("paper", "where", "claim", "paper's number", "measured ± std. error (n)", "rests on", "verdict", "notebook")


@dataclass(frozen=True)
class Row:
    """One claim with its verdict; the fields are those of :class:`sharpnb.lab.Claim`.

    Attributes:
        notebook: whose record it comes from.
        profile: the profile that the measurement rests on.
    """

    notebook: str
    id: str
    paper: str
    item: str
    statement: str
    verdict: str
    profile: str
    paper_value: float | str | None = None
    measured: float | None = None
    stderr: float | None = None
    n: int = 1
    unit: str = ""
    protocol: str = ""
    withdrawn: str = ""

    @property
    def paper_text(self) -> str:
        """The paper's number, or a dash."""
        return "–" if self.paper_value is None else f"{self.paper_value}"

    @property
    def measured_text(self) -> str:
        """The measured number, its standard error to two digits and the number of seeds; a dash where not run."""
        if self.measured is None:
            return "–"
        unit = f" {self.unit}" if self.unit else ""
        if not self.stderr or not math.isfinite(self.stderr) or not math.isfinite(self.measured):
            return f"{self.measured:.3g}{unit}"
        digits = max(0, 1 - math.floor(math.log10(self.stderr)))
        return f"{self.measured:.{digits}f} ± {self.stderr:.{digits}f} ({self.n}){unit}"


def rows() -> list[Row]:
    """Return one row a claim, by paper and then in the notebooks' order.

    A claim that both profiles have judged is shown as the full profile judged it; as long as that says "not run", as
    the quick one did.

    Raises:
        ValueError: if a record is damaged; the message names it and says what to do.
    """
    chosen: dict[tuple[str, str], Row] = {}
    for file in _files():
        notebook = file.parents[1].name
        for claim in _read(file)["claims"]:
            row = _row(notebook, claim, file)
            known = chosen.get((notebook, row.id))
            if known is None or _weight(row) > _weight(known):
                chosen[notebook, row.id] = row
    return sorted(chosen.values(), key=lambda row: row.paper)  # stable: within a paper as read


def counts(table: Sequence[Row]) -> dict[str, int]:
    """Return how many claims have each verdict, all six verdicts in their order."""
    return {verdict: sum(row.verdict == verdict for row in table) for verdict in SYMBOLS}


def head(table: Sequence[Row]) -> str:
    """Return how many claims have each verdict, in each profile and in all, as Markdown; and how many are withdrawn."""
    profiles = {name: counts([row for row in table if row.profile == name])
                for name in ("quick", "full") if any(row.profile == name for row in table)}
    columns = [*profiles.values(), counts(table)]
    total = [line(f"{SYMBOLS[verdict]} {verdict}", *(str(column[verdict]) for column in columns))
             for verdict in columns[-1]]
    gone = sum(bool(row.withdrawn) for row in table)
    said = ["", f"{gone} of the claims that are not run rested on records that were withdrawn; each says why."]
    return "\n".join([line("verdict", *profiles, "claims"), "|:--|" + "--:|" * len(columns), *total,
                      line("all", *(str(sum(column.values())) for column in columns)), *(said if gone else [])])


def as_markdown(table: Sequence[Row], notebooks: str = "notebooks/") -> str:
    """Return counts and table as Markdown; ``notebooks`` is the way from the page to the notebooks' folder."""
    links = (f"[{row.notebook.split('_')[0]}]({notebooks}{row.notebook}.ipynb)" for row in table)
    return f"{head(table)}\n\n{claims_table(table, links)}"


def claims_table(table: Sequence[Row], links: Iterable[str]) -> str:
    """Return the claims as a Markdown table whose last column holds ``links``, one text a claim."""
    lines = [
        line(row.paper, row.item, row.statement + (f" *({row.protocol})*" if row.protocol else ""), row.paper_text,
             row.measured_text, row.profile, in_words(row.verdict, row.withdrawn), link)
        for row, link in zip(table, links, strict=True)
    ]
    return "\n".join([line(*_HEAD), "|:--|:--|:--|--:|--:|:--|:--|:--|", *lines])


def origins() -> list[tuple[str, str, str, str, str]]:
    """Return of each record of claims: notebook, profile, device, version of torch, commit."""
    found = []
    for file in _files():
        made = _read(file)["provenance"]
        found.append((file.parents[1].name, file.parent.name, made.get("device", "–"),
                      made.get("versions", {}).get("torch", "–"), made.get("commit") or "–"))
    return found


def _files() -> list[Path]:
    found = (paths.root() / "data" / "records").glob("*/*/claims.json")
    return sorted(file for file in found if file.parent.name in ("quick", "full"))


def _read(file: Path) -> dict[str, Any]:
    """Return ``{"claims": …, "provenance": …}`` of one record."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"claims": content["values"]["claims"], "provenance": content.get("provenance", {})}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None


def _row(notebook: str, claim: dict[str, Any], file: Path) -> Row:
    try:
        return Row(notebook, **{name: claim[name] for name in Row.__dataclass_fields__ if name in claim})
    except TypeError as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> ValueError:
    name = file.relative_to(paths.root()).as_posix()
    return ValueError(f"{name} is damaged ({type(error).__name__}: {error}). Delete it and make it anew: sharpnb run "
                      f"{file.parents[1].name} --profile {file.parent.name} --force")


def _weight(row: Row) -> int:
    return 0 if row.verdict == "not run" else 2 if row.profile == "full" else 1


def line(*cells: str) -> str:
    """Return one line of a Markdown table; what would break it is escaped."""
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in cells) + " |"
