"""What README shows works: its code runs, its commands exist, its links lead somewhere."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer.main
from markdown_it import MarkdownIt

from sharpnb.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> set[str]:
    return set(re.findall(r"(?m)(?:^|[`/ ])sharpnb (?!is)([a-z]+)\b(?= |`|$)", text))


def missing(text: str) -> list[str]:
    targets = [target.split("#")[0].strip("<>") for target in re.findall(r"\]\(([^)]+)\)", text)]
    return [target for target in targets if target and ":" not in target and not (ROOT / target).exists()]


def test_the_code_runs_in_its_order(capsys):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    names = {"model": model, "x": torch.randn(20, 4), "y": torch.randint(3, (20,))}
    before = model[0].weight.detach().clone()
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    assert not torch.equal(before, model[0].weight) and names["loss"].isfinite()
    assert len(capsys.readouterr().out) > 100  # the eigenvalues and the summary


def test_its_commands_exist():
    known = set(typer.main.get_command(app).commands)
    assert {"run", "report", "list", "doctor", "data", "spectrum", "sweep"} <= commands(README) <= known
    assert commands("`sharpnb rum` and\nsharpnb lst 03") == {"rum", "lst"}  # it can fail


def test_its_links_lead_somewhere():
    assert missing(README) == []
    assert missing("[a](nowhere.md) [b](README.md#x) [c](https://example.org)") == ["nowhere.md"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The metadata that a build makes, as PyPI gets them."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "sharpnb/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / "made").mkdir()
    code = "import sys; from setuptools import build_meta as b; print(b.prepare_metadata_for_build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder / "made")], cwd=folder, check=True, capture_output=True)
    return email.message_from_string(next((folder / "made").glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))


def test_the_links_of_the_published_page_lead_to_files_of_the_repository(published):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    home = project["urls"]["Repository"]
    assert published["Description-Content-Type"] == "text/markdown"
    assert len(published.get_all("Project-URL")) == len(project["urls"])
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(published.get_payload())
    targets = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(targets) > 30
    assert all(target.startswith("https://") for target in targets), "PyPI has no files beside the page"
    bases = {f"{home}/blob/main/": ".md .ipynb .toml .py .cff",
             f"{home.replace('github.com', 'raw.githubusercontent.com')}/main/": ".png"}
    for base, kinds in bases.items():
        own = [target.removeprefix(base).split("#")[0] for target in targets if target.startswith(base)]
        assert own and all((ROOT / path).is_file() and Path(path).suffix in kinds.split() for path in own)
    assert f'src="{home.replace("github.com", "raw.githubusercontent.com")}/main/figures/' in page


@pytest.mark.parametrize("name", ["make reproduce", "make lab", "make test", "make site", "make test-recipes"])
def test_its_targets_exist(name):
    assert name in README and re.search(rf"(?m)^{name.split()[1]}:", (ROOT / "Makefile").read_text())
