"""What README shows works: its code runs, its commands exist, its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch
import typer.main

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


@pytest.mark.parametrize("name", ["make reproduce", "make lab", "make test", "make site", "make test-recipes"])
def test_its_targets_exist(name):
    assert name in README and re.search(rf"(?m)^{name.split()[1]}:", (ROOT / "Makefile").read_text())
