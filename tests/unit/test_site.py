"""The site's sources, the catalogue of the papers, and the committed scoreboard: what they name exists."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import heads
import links
import papers
import report
from sharpnb.lab import board

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"


def load(name):
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_headings_have_the_anchors_of_jupyterlab():
    assert links.fragment("2 Fit (all)") == "#2-Fit-(all)" and links.fragment("7 What `x` means") == ""


def test_the_catalogue_knows_every_figure_and_table_once():
    known = papers.items([])
    assert len(known) == len({(item.paper, item.item) for item in known})


def test_what_is_not_re_made_has_a_reason_and_pictures_of_notebooks_exist():
    for item in papers.items([]):
        assert item.notebook or item.why, f"{item.paper}, {item.item}"
        if (ROOT / "figures" / (item.notebook or "none")).is_dir():
            missing = [name for name in item.figures
                       if not (ROOT / "figures" / item.notebook / f"{name}.png").is_file()]
            assert not missing, f"{item.paper}, {item.item}: {missing}"


def test_the_committed_scoreboard_is_that_of_the_records():
    """Red after new records until `sharpnb report` has been called."""
    assert (ROOT / "REPORT.md").read_text(encoding="utf-8") == report.page()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_head(readme) == readme and "| ✔ supported |" in readme


@pytest.mark.parametrize("file", sorted(ROOT.glob("notebooks/[01]?_*.ipynb"))[1:], ids=lambda file: file.stem[:2])
def test_no_number_in_a_notebook_s_head_is_typed(file):
    """Red after new records until `sharpnb report` has been called; the toy of 07 measures nothing."""
    head = "".join(json.loads(file.read_text(encoding="utf-8"))["cells"][0]["source"])
    assert heads.filled(head, board.rows()) == (head, [])
    assert "&lt;!--" not in MarkdownIt("commonmark").render(head), "a mark is shown to the reader"
    typed = re.compile(r"\d ?(?:points|times|%(?! wrong| of the paper| intervals))|±")
    told = head.partition("**The answer.**")[2] or head.partition("**What you will find.**")[2]
    assert typed.findall(heads.MARK.sub("", told)) == [] and (heads.MARK.search(told) or file.stem.startswith("07"))
    assert typed.findall("lower by 1.26 ± 0.44 points") == ["±", "4 points"]


def test_a_notebook_is_made_readable():
    build = load("build")
    cells = [
        {"cell_type": "markdown", "source": ["[a](01_sam.ipynb) [b](99_none.ipynb#x) [c](https://example.org)"]},
        {"cell_type": "code", "outputs": [{"data": {build.WIDGET: {}, "text/plain": "HBox()"}}]},
    ]
    cells.append({"cell_type": "code", "id": "c1", "metadata": {"tags": ["claims"]}})
    made = build._readable({"cells": cells}, "03_a")["cells"]
    assert made[0]["source"] == "[a](01_sam.ipynb) b [c](https://example.org)"
    assert made[1]["outputs"][0]["data"].keys() == {"text/markdown"}
    assert [cell.get("source") for cell in made[2:]] == ["(cell-03_a-c1)=",
                                                         None], "the scoreboard leads to the very cell"
    folded = {"cell_type": "code", "id": "c2", "metadata": {"jupyter": {"source_hidden": True}, "tags": ["claims"]}}
    made = build._readable({"cells": [folded, {"cell_type": "code", "id": "c3", "metadata": {}}]}, "03_a")["cells"]
    assert [cell["metadata"].get("tags") for cell in made[1:]] == [["claims", "hide-input"], None]


def test_every_figure_is_in_the_gallery_with_its_text():
    build = load("build")
    shown = ("![two curves](<../figures/03_a/one.png>)\n\n"
             "**One.** Two. [vector](<../figures/03_a/one.svg>) · [numbers](x)")
    cells = [{"cell_type": "markdown", "source": ["# T\n", "## 2 Fit (all)"]},
             {"cell_type": "code", "outputs": [{"data": {"text/markdown": shown}}]}]
    (picture,) = build._pictures("03_a", {"cells": cells})
    assert (picture["alt"], picture["path"]) == ("two curves", "../figures/03_a/one.png")
    page = build._gallery([picture])
    assert "[![two curves](<figures/03_a/one.png>)](<notebooks/03_a.ipynb#2-Fit-(all)>)" in page
    assert "**One.** Two. [In the notebook]" in page


def test_links_are_followed_and_broken_ones_are_seen(tmp_path):
    page = tmp_path / "page.html"
    (tmp_path / "other.html").write_text('<p id="here">x</p>')
    page.write_text('<a href="other.html#here">a</a><a href="https://example.org">b</a><img src="other.html" alt="c">')
    assert links.broken(tmp_path, [page, tmp_path / "other.html"]) == []
    found = " ".join(links.broken(SITE, [SITE / "bad.html"]))
    for fault in ("no such file: nowhere.html", "no such file: missing.png", "no such place: #nothing",
                  "no alternative text: missing.png", "asks the network for https://example.invalid/script.js"):
        assert fault in found


def test_the_pages_tell_nothing_of_the_machine_and_ask_no_network():
    for file in [*SITE.glob("*.md"), *SITE.glob("static/*"), SITE / "conf.py", SITE / "papers.toml"]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|/(?:root|home|tmp)/", text), file.name


def test_a_damaged_catalogue_is_named(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    assert papers.items([]) == []
    (tmp_path / "site" / "papers.toml").write_text("[[paper]]\nname = 'x'\n")
    with pytest.raises(ValueError, match=r"site/papers.toml cannot be read"):
        papers.items([])


def test_without_a_browser_the_checks_say_what_to_install(monkeypatch):
    pytest.importorskip("selenium", reason="the site's packages are not installed: make site")
    monkeypatch.setenv("PATH", "")
    said = load("browser").missing()
    assert "SKIPPED" in said and "apt-get install chromium chromium-driver" in said
