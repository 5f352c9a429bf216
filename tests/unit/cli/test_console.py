"""Every command on a terminal without Greek letters, and in a folder whose modules are called like ours."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from sharpnb import cli


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return toy.checkout(tmp_path, {"01_toy": toy.guarded(), "02_ρ": toy.plain("02 λ", "pass")})


@pytest.mark.parametrize("arguments", [
    ["list"], ["run", "--dry-run"], ["run", "λ"], ["report"], ["spectrum", "--help"], ["sweep", "λ.toml"],
    ["spectrum", "--model", "λ:ρ", "--data", "digits"],
], ids=" ".join)
def test_every_command_shows_its_signs_or_others(monkeypatch, arguments):
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["sharpnb", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = {name: (stream.flush(), stream.buffer.getvalue().decode("ascii"))[1] for name, stream in streams.items()}
    fails = "--help" not in arguments and arguments[0] != "list" and "--dry-run" not in arguments
    assert (end.value.code or 0) == (2 if fails else 0), said
    assert said["stderr" if fails else "stdout"].strip() and "Traceback" not in said["stderr"]


def test_modules_of_the_working_folder_shadow_nothing_of_ours(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("random", "json", "logging", "typer", "rich", "torch", "numpy"):
        (theirs / f"{name}.py").write_text("1 / 0\n")
    done = subprocess.run([sys.executable, "-m", "sharpnb.cli", "--help"], capture_output=True, text=True, cwd=theirs,
                          env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert done.returncode == 0 and "spectrum" in done.stdout, done.stderr
