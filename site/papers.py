"""Every figure and table of the papers, with the claims that were measured on it, or the reason why it is not shown.

Which figures and tables there are is a fact about the papers and is kept in ``site/papers.toml``; everything that was
measured comes from the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

import scoreboard
from scoreboard import shown
from sharpnb import paths
from sharpnb.lab.board import Row
from sharpnb.lab.withdrawn import listed

# Re-made and measured; its code is there and waits for a machine; its notebook, or what that should hold, is missing;
# not re-made, with a reason.
STATES = ("shown", "not run", "not yet", "not shown")
# From live code; by something else in its place; neither. ``site/papers.toml`` says which, and never a measurement.
KINDS = ("re-made", "stand-in", "missing")


@dataclass(frozen=True)
class Item:
    """A figure or table of a paper; the fields are explained at the head of ``site/papers.toml``.

    Attributes:
        rows: those of the board that speak of it.
    """

    paper: str
    item: str
    shows: str
    notebook: str = ""
    figures: tuple[str, ...] = ()
    section: str = ""
    why: str = ""
    kind: str = ""
    rows: tuple[Row, ...] = field(default=(), compare=False)

    @property
    def state(self) -> str:
        """One of :data:`STATES`; nothing counts as shown of which not one claim has been measured."""
        if not self.notebook:
            return "not shown"
        if self.rows and all(row.verdict == "not run" for row in self.rows):
            return "not run"
        there = (paths.notebooks() / f"{self.notebook}.ipynb").is_file()
        pictures = [(paths.figures(self.notebook) / f"{name}.png").is_file() for name in self.figures]
        return "shown" if there and all(pictures) and (pictures or self.rows or self.section) else "not yet"


def items(board: Sequence[Row]) -> list[Item]:
    """Return the figures and tables in the papers' order, each with its claims; none where the catalogue is missing.

    Raises:
        ValueError: if ``site/papers.toml`` cannot be read; the message says where.
    """
    papers = listed("site/papers.toml", "paper", lambda paper: [
        Item(paper["name"], **{**item, "figures": tuple(item.get("figures", ()))}) for item in paper["items"]])
    return [_with_claims(item, board) for known in papers for item in known]


def as_markdown(known: Sequence[Item]) -> str:
    """Return how many figures and tables are re-made, have a stand-in or are missing, and all of them."""
    kinds = [item.kind for item in known]
    lines = ["| figures and tables | number |", "|:--|--:|"]
    lines += [f"| {kind} | {kinds.count(kind)} |" for kind in KINDS]
    lines += [f"| all | {len(known)} |", "",
              "| paper | item | what it shows there | here | verdicts | pictures | remark |",
              "|:--|:--|:--|:--|:--|:--|:--|"]
    return "\n".join([*lines, *map(_line, known)])


def _with_claims(item: Item, board: Sequence[Row]) -> Item:
    found = tuple(row for row in board if row.primary.paper == item.paper and item.item in row.primary.items)
    return replace(item, rows=found)


def _line(item: Item) -> str:
    verdicts = ", ".join(f"{row.symbol} {row.profile}" for row in item.rows if row.verdict != "not run") or "–"
    folder, number = quote(item.notebook), shown(item.notebook.split("_")[0])
    pictures = " · ".join(f"[{shown(name)}](figures/{folder}/{quote(name)}.png)" for name in item.figures) or "–"
    link = f"[{number}](notebooks/{folder}.ipynb)"
    by_another = " (stand-in)" if item.kind == "stand-in" else ""
    here = {"shown": link + by_another, "not run": f"**not run**, {link}"}.get(item.state, f"**{item.state}**")
    wanted = f"belongs to notebook {number}" if item.state == "not yet" else ""
    remark = "; ".join(filter(None, [wanted, shown(item.why)]))
    told = map(shown, (item.paper, item.item, item.shows))
    return scoreboard.line(*told, here, verdicts, pictures if item.state == "shown" else "–", remark)
