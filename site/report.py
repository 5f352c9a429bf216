"""The pages that ``sharpnb report`` writes: ``REPORT.md``, the same as HTML, and the head of it in the README.

Equal records give equal pages; the site shows the same text.
"""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

import papers
from sharpnb import paths
from sharpnb.lab import withdrawn
from studies import scoreboard
from studies.scoreboard import shown

_MARKS = ("<!-- scoreboard: sharpnb report -->", "<!-- end of scoreboard -->")

# One field that hides the lines of the long tables without the words typed into it.
FILTER = """<p><label>Show only lines with <input id="filter" type="search" size="28"
placeholder="contradicted, Fig. 3, AdamW"></label></p>
<script>
document.getElementById("filter").addEventListener("input", event => {
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  document.querySelectorAll("tbody tr").forEach(row => {
    const text = row.textContent.toLowerCase();
    row.hidden = row.closest("table").rows.length > 12 && !words.every(word => text.includes(word));
  });
});
</script>"""

_STYLE = """:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:82rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.875rem;margin:1rem 0}
input::placeholder{color:inherit;opacity:.75}
td,th{padding:.25rem .6rem;border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent);vertical-align:top}
thead th{text-align:left}input{font:inherit;padding:.2rem .4rem}a{color:light-dark(#0b5cad,#8ab4f8)}"""


SCALES = (
    "*quick*: small nets on 8x8 digits. *full*: small ResNets on CIFAR-10, cut to minutes of a GPU, 5 to 24 epochs and "
    "two or three seeds. Most of those nets still underfit, where whatever holds the weights back costs accuracy: what "
    "is contradicted there is the claim at that length of training, not at the papers'."
)


def page() -> str:
    """Return ``REPORT.md``: counts by verdict, every figure and table, every claim, the origins.

    Raises:
        ValueError: if a record or a catalogue is damaged, or an entry of the withdrawn records holds for nothing; the
            message names it and says what to do.
    """
    board = scoreboard.rows()
    withdrawn.check(board)
    known = papers.items(board)
    parts = [
        "# Scoreboard", "",
        "What the papers state and what was measured here. `sharpnb report` makes this page from the records in "
        "`data/records`; edits by hand are lost.", "",
        scoreboard.head(board), "",
        "The verdicts follow by the rule in [sharpnb/lab/claims.py](sharpnb/lab/claims.py). *Contradicted* is a result "
        "like the others: it says that this protocol, at this scale, measured the opposite.", "", SCALES, "",
    ]
    if known:
        parts += ["## Figures and tables of the papers", "",
                  "*Re-made*: from live code, with the paper's quantities, on smaller nets or images. *Stand-in*: "
                  "another data set, task or quantity, or a part. *Missing*: neither, with the reason. *Not run*: the "
                  "code is in the notebook and waits for a machine, or what it gave was withdrawn. *Not yet*: its "
                  "notebook, or what that should hold, is missing. " + _outside(known, board), "",
                  papers.as_markdown(known), ""]
    parts += ["## Claims", "", "Measured numbers are means over seeds ± standard error (number of seeds). "
              "*Stale*: the sources changed since the record was made, or were not noted then.", "",
              scoreboard.claims_table(board, (_links(row, known) for row in board)), ""]
    if gone := withdrawn.entries():
        parts += ["## What was withdrawn", "",
                  "These records are in the repository, and nothing that rests on them is judged until they are made "
                  "again.", "", _withdrawn(gone, board), ""]
    origins = (scoreboard.line(f"[{shown(name.removesuffix('.json'))}](data/records/{quote(name)})", shown(device),
                               shown(torch), shown(made), age)
               for name, device, torch, made, age in scoreboard.origins())
    parts += ["## Where the numbers come from", "",
              "| record | device | torch | commit | sources |", "|:--|:--|:--|:--|:--|", *origins, ""]
    return "\n".join(parts)


def html(markdown: str) -> str:
    """Return a Markdown page as one HTML file that needs no network: light or dark as the reader's system has it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    title = re.sub(r"^#\s*", "", markdown.partition("\n")[0])
    head, rest = body.split("</h1>", 1)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · sharpnb</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
            f"<body>{head}</h1>\n{FILTER}\n{rest}</body></html>\n")


def with_head(readme: str) -> str:
    """Return the README with the counts by verdict between its two marks; without the marks as it was."""
    before, opening, rest = readme.partition(_MARKS[0])
    _, closing, after = rest.partition(_MARKS[1])
    if not (opening and closing):
        return readme
    board = scoreboard.rows()
    known = papers.items(board)
    made, by_another, missing = (sum(item.kind == kind for item in known) for kind in papers.KINDS)
    line = (f"\n\nOf the papers' {len(known)} figures and tables {made} are re-made, {by_another} have a stand-in and "
            f"{missing} are missing, each with the reason. {SCALES}")
    return f"{before}{opening}\n{scoreboard.head(board)}{line if known else ''}\n{closing}{after}"


def write() -> list[str]:
    """Write REPORT.md, REPORT.html and the README's head where they changed; return the names of what changed."""
    markdown, readme = page(), paths.root() / "README.md"
    wanted = {"REPORT.md": markdown, "REPORT.html": html(markdown)}
    if readme.is_file():
        wanted["README.md"] = with_head(readme.read_text(encoding="utf-8"))
    changed = []
    for name, content in wanted.items():
        file = paths.root() / name
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            paths.write_whole(file, content)
            changed.append(name)
    return changed


def _outside(known: list[papers.Item], board: list[scoreboard.Row]) -> str:
    number = len(papers.elsewhere(known, board))
    return (f"{number} claims are about something else, such as propositions or papers whose figures are not listed; "
            "they stand among the claims below.")


def _withdrawn(gone: list[withdrawn.Withdrawal], board: list[scoreboard.Row]) -> str:
    lines = ["| record | commit | withdrawn | claims | why |", "|:--|:--|:--|--:|:--|"]
    for entry in gone:
        number = sum(entry.names(row.notebook, row.profile, row.id) for row in board)
        lines.append(scoreboard.line(f"[{entry.record}](data/records/{entry.record}.json)", f"`{entry.commit}`",
                                     entry.date, f"{number}", entry.why))
    return "\n".join(lines)


def _links(row: scoreboard.Row, known: list[papers.Item]) -> str:
    """Return links from the project's root: the cell that shows the claim, its record, the pictures it is about."""
    number, cell = shown(row.notebook.split("_")[0]), quote(_claims_cell(row.notebook), safe="#=")
    parts = [f"[{number}](<notebooks/{quote(row.notebook)}.ipynb{cell}>)"]
    parts += _record_links(row)
    own = [item for item in known if item.notebook == row.notebook and row in item.claims]
    pictures = [f"figures/{row.notebook}/{name}.png" for name in dict.fromkeys(n for item in own for n in item.figures)]
    there = [picture for picture in pictures if (paths.root() / picture).is_file()]
    if there:
        parts += [f"[{shown(Path(picture).stem)}]({quote(picture)})" for picture in there]
    elif paths.figures(row.notebook).is_dir():
        parts.append(f"[figures](figures/{quote(row.notebook)})")
    return " · ".join(parts)


def _record_links(row: scoreboard.Row) -> list[str]:
    """Return links to the records that a claim rests on: by their names where there are some, to the folder of many."""
    if len(row.records) > 3:
        return [f"[{len(row.records)} records]({_address(row.records[0].parent)})"]
    names = ["record"] if len(row.records) == 1 else [file.stem for file in row.records]
    return [f"[{shown(name)}]({_address(file)})"
            for name, file in zip(names, row.records, strict=True)]


def _address(file: Path) -> str:
    return quote(file.relative_to(paths.root()).as_posix())


@cache
def _claims_cell(notebook: str) -> str:
    """Return the fragment by which JupyterLab, and the site, find the cell that shows the claims, or nothing."""
    file = paths.notebooks() / f"{notebook}.ipynb"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else []
    shown = (f"#cell-id={cell['id']}" for cell in cells if "claims" in cell.get("metadata", {}).get("tags", []))
    return next(shown, "")
