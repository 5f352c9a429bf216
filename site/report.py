"""The pages that ``sharpnb report`` writes: ``REPORT.md``, the same as HTML, and the head of it in the README.

Equal records give equal pages; the site shows the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from urllib.parse import quote

import answers
import heads
import papers
import scoreboard
from replicate import DECIDED, summary
from scoreboard import shown
from sharpnb import kept, paths
from sharpnb.lab import board, withdrawn
from sharpnb.lab.board import Row
from sharpnb.lab.claims import Claim

_MARKS = ("<!-- scoreboard: sharpnb report -->", "<!-- end of scoreboard -->")

# One field that hides the lines of the long tables without the words typed into it.
FILTER = """<p><label>Show only lines with <input id="filter" type="search" size="28"
placeholder="✔, Fig. 3, AdamW"></label></p>
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
    "*quick*: live on two cores, small nets on digits or MNIST-1D, twenty seeds. *mid*: hours there, small ResNets on "
    "Fashion-MNIST and CIFAR-10 that fit their training set. *full*: minutes of a GPU, small ResNets on CIFAR-10 (18: "
    "MLPs on digits). Where the baseline does not fit its training set nothing about generalisation is judged (◦)."
)
RULE = (
    "An effect is a paired difference over judging seeds, with its 95 % interval; it is above 0, or above ×1, where "
    "the paper is right. ✔ or ✘: the interval lies on one side, after Holm's correction among the primary claims of "
    "one paper and profile. =: it lies within ±δ, the smallest effect that matters (0.5 points, 10 % of a ratio, a "
    "factor 1.25 of an eigenvalue, 0.1 of a rank correlation, unless [the list](site/primary.toml) argues another). "
    "?: neither, with the smallest effect that this design would have seen in four of five cases. Fewer than five "
    "seeds decide nothing. [The rule](sharpnb/lab/verdicts.py); [what it promises, "
    "measured](benchmarks/RESULTS_verdicts.md)."
)


def page() -> str:
    """Return ``REPORT.md``: the answers, counts, a line per primary claim, figures and tables, checks, origins.

    Raises:
        ValueError: if a record or a catalogue is damaged, or an entry of the withdrawn records holds for nothing; the
            message names it and says what to do.
    """
    rows = board.rows()
    check_withdrawn(board.measured())
    known = papers.items(rows)
    parts = [
        "# Scoreboard", "",
        "What the papers state and what was measured here. `sharpnb report` makes this page from the records in "
        "`data/records`; edits by hand are lost.", "", *_answers(rows),
        "## Verdicts", "", scoreboard.head(rows), "", RULE, "", SCALES, "",
        "## Primary claims", "", "One line per claim. The number leads to its record, the last column to the "
        "notebook's table, where the details stand below each claim.", "", scoreboard.as_markdown(rows, _cell), "",
    ]
    if known:
        parts += ["## Figures and tables of the papers", "",
                  "*Re-made*: from live code, with the paper's quantities, on smaller nets or images. *Stand-in*: "
                  "another data set, task or quantity, or a part. *Missing*: neither, with the reason. *Not run*: the "
                  "code is in the notebook and waits for a machine, or what it gave was withdrawn. *Not yet*: its "
                  "notebook, or what that should hold, is missing.", "", papers.as_markdown(known), ""]
    if checks := withdrawn.listed("site/primary.toml", "check", lambda entry: (
            entry["paper"], ", ".join(entry["items"]), entry["why"])):
        parts += ["## Checks", "", "Identities, counts and constructions: they are tested in the notebooks and count "
                  "as no evidence.", "", scoreboard.line("paper", "where", "why it is no claim"), "|:--|:--|:--|",
                  *(scoreboard.line(*map(shown, check)) for check in checks), ""]
    parts += _replications()
    if gone := withdrawn.entries():
        parts += ["## What was withdrawn", "",
                  "These records are in the repository, and nothing that rests on them is judged until they are made "
                  "again.", "", _withdrawn(gone), ""]
    origins = (scoreboard.line(f"[{shown(name.removesuffix('.json'))}](data/records/{quote(name)})", shown(device),
                               shown(torch), shown(made), age)
               for name, device, torch, made, age in scoreboard.origins(rows))
    parts += ["## Where the numbers come from", "", "*Stale*: the sources changed since the record was made, or were "
              "not noted then.", "", "| record | device | torch | commit | sources |", "|:--|:--|:--|:--|:--|",
              *origins, ""]
    return "\n".join(parts)


def _replications() -> list[str]:
    parts: list[str] = []  # each decided claim with its effect on fresh seeds
    for file in sorted((paths.root() / "data" / "replications").glob("*.json")):
        told = kept.read(file)
        lines = [scoreboard.line(shown(row["claim"]), *(shown(f"{row[k]['verdict']}, {row[k]['text']}")
                                                        for k in ("old", "fresh")))
                 for row in told["rows"] if row["old"]["verdict"] in DECIDED]
        parts += [f"## Replication on seeds {shown(told['seeds'])}", "",
                  f"{summary(told['rows'])} Notebooks: {shown(', '.join(map(_run, told['notebooks'].items())))}.", "",
                  scoreboard.line("claim", "committed", "fresh"), "|:--|:--|:--|", *lines, ""]
    return parts


def _run(notebook: tuple[str, dict[str, str]]) -> str:
    name, run = notebook
    return name + (f" (failed: {run['failed']})" if "failed" in run else "")


def _answers(rows: Sequence[Row], numbers: int = 100) -> list[str]:
    found = answers.answers(rows)
    return [answers.as_markdown(found, numbers), ""] if found else []


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
    """Return the README with the answers and the counts between its two marks; without the marks as it was."""
    before, opening, rest = readme.partition(_MARKS[0])
    _, closing, after = rest.partition(_MARKS[1])
    if not (opening and closing):
        return readme
    rows = board.rows()
    known = papers.items(rows)
    made, by_another, missing = (sum(item.kind == kind for item in known) for kind in papers.KINDS)
    parts = [*_answers(rows, numbers=1), "An effect above 0, or above ×1, speaks for the paper.", "",
             scoreboard.head(rows)]
    if known:
        parts += ["", f"Of the papers' {len(known)} figures and tables {made} are re-made, {by_another} have a "
                  f"stand-in and {missing} are missing, each with the reason. {SCALES}"]
    return f"{before}{opening}\n" + "\n".join(parts) + f"\n{closing}{after}"


def write() -> list[str]:
    """Write REPORT.md, REPORT.html, the README's head and the notebooks' where they changed; return what changed.

    Raises:
        ValueError: as :func:`page`; if there are no claims; or if a sentence in a notebook's head says what the
            records no longer say. All is written, and the message names the sentences.
    """
    if not board.measured():
        raise ValueError("There are no claims in data/records yet. Make them: sharpnb run")
    markdown, readme = page(), paths.root() / "README.md"
    wanted = {"REPORT.md": markdown, "REPORT.html": html(markdown)}
    if readme.is_file():
        wanted["README.md"] = with_head(readme.read_text(encoding="utf-8"))
    rows, wrong = board.rows(), []
    for file in sorted(paths.notebooks().glob("*.ipynb")):
        name = file.relative_to(paths.root()).as_posix()
        wanted[name], faults = heads.filled(file.read_text(encoding="utf-8"), rows)
        wrong += [f"{name}: {fault}" for fault in faults]
    changed = []
    for name, content in wanted.items():
        file = paths.root() / name
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            paths.write_whole(file, content)
            changed.append(name)
    if wrong:
        raise ValueError("Sentences in the heads of notebooks are no longer true. Write them again, with the mark that "
                         "site/heads.py explains:\n" + "\n".join(wrong))
    return changed


def check_withdrawn(measured: Mapping[str, Sequence[Claim]]) -> None:
    """Raise a ValueError unless each entry holds for a record, and what it says of ``measured`` claims stands there."""
    for entry in withdrawn.entries():
        notebook, profile, _ = entry.record.split("/")
        named = [claim for claim in measured.get(notebook, []) if entry.names(notebook, claim.profile, claim.id)]
        if not entry.holds:
            found = f"the one there is of {', '.join(sorted(entry.commits))}" if entry.commits else "there is none"
            raise ValueError(f"data/withdrawn.toml withdraws {entry.record} of commit {entry.commit}, and {found}. If "
                             "it has been made again, delete the entry; else mend what the entry names.")
        if not named:
            raise ValueError(f"data/withdrawn.toml: no claim that rests on {entry.record} is named "
                             f"{' or '.join(entry.claims)}. Mend the names, or delete the entry.")
        if told := [claim.id for claim in named
                    if claim.withdrawn != withdrawn.why(notebook, profile, claim.id)]:
            raise ValueError(f"{notebook}: claim {told[0]} rests on {entry.record}, which is withdrawn, and its table "
                             f"does not say so. Run it again: sharpnb run {notebook} --force --update")


def _withdrawn(gone: list[withdrawn.Withdrawal]) -> str:
    lines = ["| record | commit | withdrawn | why |", "|:--|:--|:--|:--|"]
    lines += [scoreboard.line(f"[{entry.record}](data/records/{entry.record}.json)", f"`{entry.commit}`", entry.date,
                              entry.why) for entry in gone]
    return "\n".join(lines)


def _cell(row: Row) -> str:
    """Return the address of the cell that shows a row's claims, from the project's root."""
    return f"notebooks/{quote(row.notebook)}.ipynb{quote(_claims_cell(row.notebook), safe='#=')}"


@cache
def _claims_cell(notebook: str) -> str:
    """Return the fragment by which JupyterLab, and the site, find the cell that shows the claims, or nothing."""
    file = paths.notebooks() / f"{notebook}.ipynb"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else []
    shown = (f"#cell-id={cell['id']}" for cell in cells if "claims" in cell.get("metadata", {}).get("tags", []))
    return next(shown, "")
