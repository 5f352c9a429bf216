"""What stands in records and catalogues is shown by the report and the site, and never runs."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

import answers
import report
import scoreboard
from sharpnb import paths
from sharpnb.lab import Claim, board

OWN = 'document.title="owned"'
HOSTILE = [
    f"<script>{OWN}</script>", f"</td></tr></table><script>{OWN}</script>", f"<img src=x onerror='{OWN}'>",
    f"<svg/onload='{OWN}'>",
    f"[x](javascript:{OWN})", f"<javascript:{OWN}>", f"`</code><script>{OWN}</script>`", f"\\<script>{OWN}</script>",
    f"&lt;script&gt;{OWN}",
    f'![x](x"onerror="{OWN})', f"<!-- --><script>{OWN}</script>", f"$\\href{{javascript:{OWN}}}{{x}}$",
    f"**<b onmouseover='{OWN}'>",
]
NAME = "03_<img src=x onerror=document.title='owned'>"  # of a folder: any character but a slash


class Live(HTMLParser):
    """Collects whatever of a page could run or lead to what runs; scripts by their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""
        self.shown = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        places = [value or "" for name, value in attributes if name in ("href", "src")]
        self.found += [f"{tag} {name}" for name, _ in attributes if name.startswith("on")]
        self.found += [f"{tag} {value}" for value in places
                       if value.strip().lower().startswith(("javascript:", "data:"))]
        self.found += [tag] if tag in ("script", "iframe", "object", "embed", "svg", "form", "base") else []

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside != "script":
            self.shown += text


def toml(name, **tables):
    """Write a list of the site; JSON's texts and lists are TOML's too, and its objects are once ``:`` is ``=``."""
    def shown(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {shown(part)}" for key, part in value.items()) + " }"
        return "[" + ", ".join(map(shown, value)) + "]" if isinstance(value, list) else json.dumps(value)

    lines = [f"[[{table}]]\n" + "\n".join(f"{key} = {shown(value)}" for key, value in entry.items())
             for table, entries in tables.items() for entry in entries]
    paths.write_whole(paths.root() / "site" / f"{name}.toml", "\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A checkout whose every text is hostile."""
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    entries, answers, items = [], [], []
    for k, text in enumerate(HOSTILE):
        name = f"{NAME}{k}"
        claim = Claim(f"a{k}", (1.0, 1.1, 1.2), protocol=text, unit=text, paper_value=text, apart=text, record="full/x")
        detail = Claim(f"d{k}", (1.0, 1.1), below=f"a{k}", statement=text, unit=text)
        made = {"device": text, "commit": text, "versions": {"torch": text}}
        for file, values in (("quick/claims", {"claims": [claim.as_dict(), detail.as_dict()]}), ("full/x", {})):
            content = json.dumps({"values": values, "provenance": made})
            paths.write_whole(tmp_path / "data" / "records" / name / f"{file}.json", content)
        entries.append({"id": f"a{k}", "paper": text, "items": [f"Fig. 3 {text}"], "statement": text, "effect": text,
                        "unit": text, "side": 1, "delta": 0.1, "notebook": name, "profiles": ["quick"]})
        answers.append({"question": text, "claims": [f"a{k}"], **dict.fromkeys(("yes", "no", "mixed", "open"), text)})
        items.append({"name": text,
                      "items": [{"item": f"Fig. 3 {text}", "shows": text, "why": text, "figures": [f"x{k}"],
                                               "notebook": name, "kind": "re-made"}]})
    toml("primary", primary=entries, check=[{"paper": text, "items": [text], "why": text} for text in HOSTILE])
    toml("answers", answer=answers)
    toml("papers", paper=items)
    cell = {"cell_type": "code", "id": f"c'><script>{OWN}</script>", "metadata": {"tags": ["claims"]}, "source": []}
    paths.write_whole(tmp_path / "notebooks" / f"{NAME}0.ipynb", json.dumps({"cells": [cell]}))
    return tmp_path


def test_the_hostile_texts_would_run():
    """The control: without the escape some of them are alive (in which page, depends on the rest of it)."""
    rendered = [MarkdownIt("commonmark", {"html": True}).render(text) for text in HOSTILE]
    alive = [text for text, page in zip(HOSTILE, rendered, strict=True) if Live(page).found]
    assert len(alive) >= 5 and HOSTILE[0] in alive


def test_no_text_of_a_file_is_alive_in_the_report():
    page = report.html(report.page())
    seen = Live(page)
    assert seen.found == Live(report.FILTER).found == ["script"]
    for text in HOSTILE:
        assert text in " ".join(seen.shown.split()), "and it is shown as it was written"


def test_nor_where_a_page_of_the_site_is_made_of_it_with_tags_allowed():
    markdown = report.page() + scoreboard.as_markdown(board.rows(), lambda row: row.notebook) + answers.as_markdown(
        answers.answers(board.rows()))
    seen = Live(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
    assert seen.found == []
    assert not any(text in markdown for text in HOSTILE), "no text stands in the Markdown as it is in the file"


@pytest.mark.parametrize("text",
                         ["a", "σ & τ", "a_b", "_a_", "x < y > z", "`a`", "$a$", "\\", "[a](b)", "*a* ~b~", *HOSTILE])
def test_what_is_shown_is_the_text_itself(text):
    rendered = MarkdownIt("commonmark", {"html": True}).renderInline(scoreboard.shown(text))
    assert Live(rendered).found == [] and Live(rendered).shown == text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _title(file) -> str:
    """Return the title of a page after a browser has run what there is to run."""
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
                f"--user-data-dir={file.parent / 'own'}"]
    done = subprocess.run([BROWSER, *switches, "--dump-dom", file.as_uri()], capture_output=True, text=True,
                          timeout=120)
    return done.stdout.split("<title>")[1].split("</title>")[0]


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_real_browser_runs_nothing_of_it(root):
    (root / "report.html").write_text(report.html(report.page()))
    assert _title(root / "report.html") == "Scoreboard · sharpnb"
    control = "<!doctype html><title>quiet</title>" + MarkdownIt("commonmark", {"html": True}).render(HOSTILE[2])
    (root / "control.html").write_text(control)
    assert _title(root / "control.html") == "owned"
