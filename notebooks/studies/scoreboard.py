"""All claims of all notebooks in one table: what the papers state, what was measured, the verdict.

Everything is read from ``data/records/<notebook>/quick/claims.json``, where each notebook judges its live results and
its committed records of the full profile, and from the provenance of those records. Nothing is typed by hand, and equal
records give equal text. ``site/report.py`` makes the pages of it, the notebook ``00_index`` shows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sharpnb import kept, paths, sources
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
    record: str = ""

    @property
    def records(self) -> list[Path]:
        """The files that the measurement rests on; the claims of the quick profile are a record themselves."""
        if self.measured is None:
            return []
        folder = paths.root() / "data" / "records" / self.notebook
        told = folder / (self.record or ("quick/claims" if self.profile == "quick" else self.profile))
        file = told.with_name(f"{told.name}.json")
        return [file] if file.is_file() else sorted(told.glob("*.json"))

    @property
    def rests_on(self) -> str:
        """The profile, the devices that made its records, and ``stale`` where the sources are not those of today."""
        devices = sorted({_provenance(file).get("device", "–") for file in self.records})
        old = any(_age(file) in ("changed since", "not noted") for file in self.records)
        return ", ".join([self.profile, *devices, *(["stale"] if old else [])])

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

    Raises:
        ValueError: if a record is damaged, or a notebook has two claims of one id; the message names the file and says
            what to do.
    """
    found: list[Row] = []
    fields = list(Row.__dataclass_fields__)
    for file in sorted((paths.root() / "data" / "records").glob("*/quick/claims.json")):
        try:
            own = [Row(file.parents[1].name, **{field: claim[field] for field in fields if field in claim})
                   for claim in kept.read(file)["values"]["claims"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(file, error) from None
        ids = [row.id for row in own]
        if twice := [i for i in ids if ids.count(i) > 1]:
            raise _damaged(file, ValueError(f"two claims bear the id {twice[0]!r}"))
        found += own
    return sorted(found, key=lambda row: row.paper)  # stable: within a paper as read


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
    links = (f"[{shown(row.notebook.split('_')[0])}]({notebooks}{quote(row.notebook)}.ipynb)" for row in table)
    return f"{head(table)}\n\n{claims_table(table, links)}"


def claims_table(table: Sequence[Row], links: Iterable[str]) -> str:
    """Return the claims as a Markdown table whose last column holds ``links``, one text a claim."""
    lines = [
        line(*map(shown, (row.paper, row.item)),
             shown(row.statement) + (f" *({shown(row.protocol)})*" if row.protocol else ""),
             *map(shown, (row.paper_text, row.measured_text, row.rests_on)),
             shown(in_words(row.verdict, row.withdrawn)), link)
        for row, link in zip(table, links, strict=True)
    ]
    return "\n".join([line(*_HEAD), "|:--|:--|:--|--:|--:|:--|:--|:--|", *lines])


def origins() -> list[tuple[str, str, str, str, str]]:
    """Return of each record that claims rest on its file below ``data/records``, device, torch, commit and sources.

    The last says how the sources that made it stand to those of today.
    """
    folder, found = paths.root() / "data" / "records", []
    for file in sorted({file for row in rows() for file in row.records}):
        made = _provenance(file)
        found.append((file.relative_to(folder).as_posix(), made.get("device", "–"),
                      made.get("versions", {}).get("torch", "–"), made.get("commit") or "–", _age(file)))
    return found


def _provenance(file: Path) -> dict[str, Any]:
    return _provenance_at(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1000)
def _provenance_at(file: Path, changed: int) -> dict[str, Any]:
    """Return the provenance of a record; ``changed`` (its time of change) keeps the cache honest."""
    try:
        return dict(kept.read(file).get("provenance", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise _damaged(file, error) from None


def _age(file: Path) -> str:
    """Say how the sources that made a record stand to those of today; those of the quick profile run anew each time."""
    if file.parent.name == "quick":
        return "live"
    noted = _provenance(file).get("sources")
    if not noted:
        return "not noted"
    return "as today" if noted == _sources_today(file.parents[1].name, paths.root()) else "changed since"


@cache
def _sources_today(notebook: str, root: Path) -> str:
    return sources.of_notebook(notebook)  # below ``root``


def _damaged(file: Path, error: Exception) -> ValueError:
    name = file.relative_to(paths.root()).as_posix()
    return ValueError(f"{name} is damaged ({type(error).__name__}: {error}). Delete it and make it anew: sharpnb run "
                      f"{file.parents[1].name} --profile {file.parent.name} --force")


def shown(text: str) -> str:
    """Return Markdown that shows a text from a file as it is: no tag, link, code, formula or emphasis comes of it."""
    within_words = r"(?<=\w)_(?=\w)"  # means nothing in Markdown
    return re.sub(rf"(?!{within_words})([\\`*_\[\]<>$~])", r"\\\1", text.replace("&", "&amp;"))


def line(*cells: str) -> str:
    """Return one line of a Markdown table; what would break it is escaped."""
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in cells) + " |"
