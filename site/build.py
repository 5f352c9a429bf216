"""Gather the pages under site/_build/src and build them to site/_build/html: python site/build.py."""

import json
import re
import shutil
import sys
from pathlib import Path

from sharpnb import paths

paths.let_studies_be_imported()

import links
import report

HERE = Path(__file__).resolve().parent
ROOT, SOURCE, TARGET = HERE.parent, HERE / "_build" / "src", HERE / "_build" / "html"
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE = re.compile(  # as lab.Notebook.figure shows it
    r"!\[(?P<alt>[^\]]*)\]\(<?(?P<path>[^>)]+\.png)>?\)\s*(?P<caption>(?:(?!\[vector\]).)*)", re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:\\.|[^\]\\])+)\]\((?:<(?P<angled>[^>]+)>|(?P<plain>[^)\s]+))\)")


def gather() -> None:
    """Gather the pages."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for folder in ("figures", "data/records"):
        shutil.copytree(ROOT / folder, SOURCE / folder, ignore=shutil.ignore_patterns("toy", "*.partial"))
    shutil.copytree(HERE / "api", SOURCE / "api")
    shutil.copytree(ROOT / "benchmarks", SOURCE / "benchmarks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in HERE.glob("*.md"):
        shutil.copy2(page, SOURCE / page.name)
    (SOURCE / "notebooks").mkdir()
    pictures = []
    for file in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        pictures += _pictures(file.stem, notebook)
        (SOURCE / "notebooks" / file.name).write_text(json.dumps(_readable(notebook, file.stem)), encoding="utf-8")
    (SOURCE / "api" / "lab.md").write_text(_lab(), encoding="utf-8")
    (SOURCE / "gallery.md").write_text(_gallery(pictures), encoding="utf-8")
    (SOURCE / "scoreboard.md").write_text(_scoreboard(pictures), encoding="utf-8")


def main() -> int:
    """Gather and build; a warning of Sphinx is an error, since it is most often a broken link."""
    gather()
    from sphinx.cmd.build import main as sphinx

    strict = ["-q", "-W", "--keep-going"]
    return sphinx([*strict, "-c", str(HERE), "-d", str(HERE / "_build" / "cache"), str(SOURCE), str(TARGET)])


def _readable(notebook: dict, name: str) -> dict:
    """Return the notebook with text in the place of panels (alive in JupyterLab only) and of links to no page or file.

    The cell that shows the claims is given a name, to which the scoreboard leads; folded cells are folded here too.
    """

    def follow(match: re.Match[str]) -> str:
        target = match["angled"] or match["plain"]
        path = target.split("#")[0]
        there = not path or path in shown or (SOURCE / "notebooks" / path).is_file()
        return match[0] if ":" in target or there else match["text"]

    cells, shown = [], {file.name for file in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    for cell in notebook["cells"]:
        if "claims" in cell.get("metadata", {}).get("tags", []):
            target = f"({_cell(name, cell['id'])})="
            cells.append({"cell_type": "markdown", "id": "target", "metadata": {}, "source": target})
        cells.append(cell)
        if cell.get("metadata", {}).get("jupyter", {}).get("source_hidden"):  # folded here as in JupyterLab
            cell["metadata"].setdefault("tags", []).append("hide-input")
        if cell["cell_type"] == "markdown":
            cell["source"] = LINK.sub(follow, "".join(cell["source"]))
        for output in cell.get("outputs", []):
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/markdown": "*A panel with sliders is here in JupyterLab (`make lab`).*"}
            if text := "".join(output.get("data", {}).get("text/markdown", "")):
                output["data"]["text/markdown"] = LINK.sub(follow, text)
    return {**notebook, "cells": cells}


def _cell(notebook: str, ident: str) -> str:
    return f"cell-{notebook}-{ident}"


def _pictures(name: str, notebook: dict) -> list[dict]:
    """Return the figures that a notebook shows: path, alternative text, caption, the heading above."""
    found, heading = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            heading = ([heading, *re.findall(r"(?m)^#{1,4} +(.+?) *$", "".join(cell["source"]))])[-1]
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            found += [{"notebook": name, "heading": heading, **match.groupdict()} for match in PICTURE.finditer(text)]
    return found


def _target(path: str) -> str:
    """Return the name of a figure's place in the gallery."""
    return "figure-" + path.removeprefix("../").removeprefix("figures/").removesuffix(".png").replace("/", "-")


def _gallery(pictures: list[dict]) -> str:
    """Return the page of all figures, each with its alternative text and the way to its notebook."""
    lines = ["# Figures", "", f"All {len(pictures)} figures. Each leads to the section that makes it.", ""]
    named = set()
    for name in dict.fromkeys(picture["notebook"] for picture in pictures):
        lines += [f"## {name}", "", '<div class="gallery">', ""]
        for picture in (one for one in pictures if one["notebook"] == name):
            path = picture["path"].removeprefix("../")
            place = f"notebooks/{name}.ipynb{links.fragment(picture['heading'])}"
            caption = " ".join(picture["caption"].split())
            target = _target(path)
            lines += ['<div class="figure-card">', "", *([] if target in named else [f"({target})="]),
                      f"[![{picture['alt']}](<{path}>)](<{place}>)", "",
                      f"{caption} [In the notebook](<{place}>)", "", "</div>", ""]
            named.add(target)
        lines += ["</div>", ""]
    return "\n".join(lines)


def _lab() -> str:
    """Return the reference of what an experiment needs, a section a module."""
    lines = ["# Experiments", "", "What an experiment needs around the tools, module by module.", ""]
    for file in sorted((ROOT / "sharpnb" / "lab").glob("[a-z]*.py")):
        name = f"sharpnb.lab.{file.stem}"
        lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
    return "\n".join(lines)


def _scoreboard(pictures: list[dict]) -> str:
    """Return REPORT.md as a page of the site: links lead to its cells, figures and pages, and else are plain text."""
    targets = {_target(picture["path"]) for picture in pictures}
    with_pictures = {picture["notebook"] for picture in pictures}

    def follow(match: re.Match[str]) -> str:
        text, target = match["text"], (match["angled"] or match["plain"]).removeprefix("site/")
        path, _, fragment = target.partition("#")
        if fragment.startswith("cell-id=") and (SOURCE / path).is_file():
            return f"[{text}](#{_cell(Path(path).stem, fragment.removeprefix('cell-id='))})"
        if _target(path) in targets:
            return f"[{text}](#{_target(path)})"
        if path.startswith("figures/") and (name := path.split("/")[1]) in with_pictures:
            return f"[{text}](gallery.md#{name})"
        return f"[{text}](<{target}>)" if (SOURCE / path).is_file() else text

    head, rest = LINK.sub(follow, report.page()).split("\n", 1)
    return f"{head}\n\n{report.FILTER}\n\n{rest}"


if __name__ == "__main__":
    sys.exit(main())
