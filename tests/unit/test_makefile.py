"""``make lab`` as a reader meets it: pictures beside the notebooks are served, also to root. And the site's links."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pytest

import build

ROOT = Path(__file__).resolve().parents[2]


def recipe(*variables: str) -> list[str]:
    """Return the command that ``make lab`` would start, in this environment."""
    said = subprocess.run(["make", "--no-print-directory", "-n", "lab", *variables], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout
    command = shlex.split(said.strip().splitlines()[-1])
    assert command[:3] == [".venv/bin/python", "-m", "jupyterlab"]
    return [sys.executable, *command[1:]]


def test_root_may_and_nobody_else_asks_for_it():
    assert ("--allow-root" in recipe()) == (os.geteuid() == 0)
    assert recipe()[-1] == "notebooks/00_index.ipynb"


@pytest.fixture
def served(tmp_path):
    """Start the command without a browser; yield a function that asks it for a file."""
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME", "DATA")}
    own |= {f"JUPYTERLAB_{kind}_DIR": str(tmp_path / kind) for kind in ("SETTINGS", "WORKSPACES")}
    command = [*recipe()[:-1], "--no-browser", "--ServerApp.port=0", "--IdentityProvider.token=own", recipe()[-1]]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (told := [*(tmp_path / "RUNTIME").glob("jpserver-*.json")]):
            assert time.monotonic() < deadline and server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        address = json.loads(told[0].read_text())["url"]

        def ask(path: str) -> int:
            try:
                return urllib.request.urlopen(f"{address}files/{path}?token=own", timeout=30).status
            except urllib.error.HTTPError as error:
                return error.code

        yield ask
    finally:
        server.terminate()
        server.wait(30)


def test_the_pictures_of_the_notebooks_are_served(served):
    shown = sorted((ROOT / "figures").glob("*/*.png"))
    assert len(shown) > 50
    assert {served(shown[0].relative_to(ROOT).as_posix()), served("notebooks/01_sam.ipynb")} == {200}
    assert served("figures/01_sam/nothing.png") == 404


def test_no_target_is_taken_for_the_folder_of_its_name():
    text = (ROOT / "Makefile").read_text()
    assert {*re.findall(r"(?m)^([a-z-]+):", text)} == {*re.search(r"(?m)^\.PHONY: (.*)", text)[1].split()}


def test_links_between_pages_of_the_site_lead_somewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SOURCE", tmp_path / "src")
    build.gather()
    pages = [(file, file.read_text()) for file in build.SOURCE.rglob("*.md")]
    for file in build.SOURCE.glob("notebooks/*.ipynb"):
        for cell in json.loads(file.read_text())["cells"]:
            shown = [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
            pages += [(file, "".join(text)) for text in (shown if cell["cell_type"] == "code" else [cell["source"]])]
    found = [(file, unquote(to)) for file, text in pages for to in re.findall(r"\]\(<?([^)>#\s]+)", text)]
    assert len(found) > 500
    assert [f"{file.name}: {to}" for file, to in found if ":" not in to and not (file.parent / to).is_file()] == []
