"""The board as tables: every primary claim, its verdicts by profile, and where the numbers come from.

Equal records (:mod:`sharpnb.lab.board`) give equal text. ``site/report.py`` makes pages of it, ``00_index`` shows it.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sharpnb import kept, paths, sources
from sharpnb.lab import board
from sharpnb.lab.board import PROFILES, Row
from sharpnb.lab.verdicts import SYMBOLS


def head(rows: Sequence[Row]) -> str:
    """Return how many primary claims have each verdict, by profile, as Markdown; and how many are withdrawn."""
    columns = [board.counts([row for row in rows if row.profile == profile]) for profile in PROFILES]
    total = [line(f"{SYMBOLS[verdict]} {verdict}", *(str(column[verdict]) for column in columns))
             for verdict in SYMBOLS]
    gone = sum(bool(row.claim and row.claim.withdrawn) for row in rows)
    said = ["", f"{gone} of those that are not run rested on records that were withdrawn; each says why."]
    return "\n".join([line("verdict", *PROFILES), "|:--|" + "--:|" * len(columns), *total,
                      line("primary claims", *(str(sum(column.values())) for column in columns)),
                      *(said if gone else [])])


def as_markdown(rows: Sequence[Row], notebook: Callable[[Row], str], records: str = "") -> str:
    """Return one line per primary claim of the board's rows.

    ``notebook`` returns the address of the cell that shows a row's claims; ``records`` is the way from the page to the
    project's root, for links to the records.
    """
    lines = [line("paper", "where", "claim", *PROFILES, "notebook"), "|:--|:--|:--|:--|:--|:--|:--|"]
    for entry in dict.fromkeys(row.primary for row in rows):
        own = {row.profile: row for row in rows if row.primary == entry}
        cells = [cell(own[profile], records) if profile in own else "" for profile in PROFILES]
        places = dict.fromkeys(f"[{shown(row.notebook.split('_')[0])}](<{notebook(row)}>)" for row in own.values())
        lines.append(line(*map(shown, (entry.paper, entry.where, entry.statement)), *cells, " ".join(places)))
    return "\n".join(lines)


def undecided(rows: Sequence[Row]) -> str:
    """Return a line per undecided primary claim with the smallest effect that it could have seen in 80 % of cases."""
    told = [row for row in rows if row.verdict == "undecided"]
    return "\n".join([f"undecided: {len(told)}",
                      *(f"  {row.primary.id} ({row.profile}): {row.reason}" for row in told)])


def cell(row: Row, records: str = "") -> str:
    """Return a row's verdict, effect, seeds, devices, whether a tuned value is a grid's end, and what limits it."""
    if row.claim is None or row.claim.estimated is None:
        return f"{row.symbol} {row.verdict}" + (f" ({shown(row.reason)})" if row.reason else "")
    files = records_of(row)
    number = shown(board.interval(row.primary, row.claim.estimated))
    if files:
        place = files[0] if len(files) == 1 else files[0].parent
        number = f"[{number}](<{records}{quote(place.relative_to(paths.root()).as_posix())}>)"
    devices = sorted({_provenance(file).get("device", "–") for file in files})
    old = ["stale"] if any(_age(file) in ("changed since", "not noted") for file in files) else []
    old += ["tuned to an edge"] * ("edge" in row.claim.protocol)
    told = ", ".join([f"n = {row.claim.seeds}", *map(shown, devices), *old])
    return f"{row.symbol} {number} ({told})" + (f": {shown(row.reason)}" if row.reason else "")


def records_of(row: Row) -> list[Path]:
    """Return the files that a row rests on; the claims of the quick profile are a record themselves."""
    if row.claim is None or row.claim.estimated is None:
        return []
    folder = paths.root() / "data" / "records" / row.notebook
    told = folder / (row.claim.record or ("quick/claims" if row.profile == "quick" else row.profile))
    file = told.with_name(f"{told.name}.json")
    return [file] if file.is_file() else sorted(told.glob("*.json"))


def origins(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    """Return of each record that claims rest on its file below ``data/records``, device, torch, commit and age."""
    folder, found = paths.root() / "data" / "records", []
    for file in sorted({file for row in rows for file in records_of(row)}):
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
        name = file.relative_to(paths.root()).as_posix()
        raise ValueError(f"{name} is damaged ({type(error).__name__}: {error}). Delete it and make it anew: sharpnb "
                         f"run {file.parents[1].name} --profile {file.parent.name} --force") from None


def _age(file: Path) -> str:
    """Say how the sources that made a record stand to those of today; those of the quick profile run anew each time."""
    if file.parent.name == "quick":
        return "live"
    noted = _provenance(file).get("sources")
    if not noted:
        return "not noted"
    return "as today" if noted == _sources_today(file.parents[1].name, paths.root()) else "changed since"


@cache
def _sources_today(notebook: str, root: Path) -> str:  # below root
    return sources.of_notebook(notebook)


def shown(text: str) -> str:
    """Return Markdown that shows a text from a file as it is: no tag, link, code, formula or emphasis comes of it."""
    within_words = r"(?<=\w)_(?=\w)"  # means nothing in Markdown
    return re.sub(rf"(?!{within_words})([\\`*_\[\]<>$~])", r"\\\1", text.replace("&", "&amp;"))


def line(*cells: str) -> str:
    """Return one line of a Markdown table; what would break it is escaped."""
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in cells) + " |"
