"""Every command on terminals as they are: ASCII, Latin-1, a reader that has gone, a disk that is full."""

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from sharpnb import cli, console

SIGNS = "λmax 3 ± 1, ρ … – ≤ → ✔ ✘ ∞ café 大"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    return toy.checkout(tmp_path, {"01_toy": toy.guarded(), "02_ρ": toy.plain("02 λ", "pass")})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("arguments", [
    ["list"], ["run", "--dry-run"], ["run", "λ"], ["data"], ["report"], ["spectrum", "--help"], ["sweep", "λ.toml"],
    ["spectrum", "--model", "λ:ρ", "--data", "digits"], ["spectrum", "--λ"],
], ids=" ".join)
def test_every_command_shows_its_signs_or_others(monkeypatch, arguments, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["sharpnb", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = {name: (stream.flush(), stream.buffer.getvalue().decode(encoding))[1] for name, stream in streams.items()}
    fails = "--help" not in arguments and arguments[0] not in ("list", "data") and "--dry-run" not in arguments
    assert (end.value.code or 0) == (2 if fails else 0), said
    assert said["stderr" if fails else "stdout"].strip() and "Traceback" not in said["stderr"]
    if arguments == ["list"]:
        assert ("02_ρ" if encoding == "utf-8" else "02_rho") in said["stdout"]


def test_what_stands_for_a_sign_is_readable():
    assert SIGNS.encode("ascii", "sharpnb.plain") == b"lambdamax 3 +- 1, rho ... - <= -> yes no inf cafe ?"
    assert "café ± λ".encode("latin-1", "sharpnb.plain").decode("latin-1") == "café ± lambda"
    assert "\udcff".encode("utf-8", "sharpnb.plain") == b"?", "a file's name that is no text"


@pytest.mark.parametrize("variables", [
    {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_process_of_its_own(root, variables):
    done = subprocess.run([sys.executable, "-m", "sharpnb.cli", "list"], capture_output=True,
                          env={**toy_environment(), **variables})
    assert done.returncode == 0 and b"lambda" in done.stdout, done.stderr


def toy_environment():
    return {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "PYTHONIOENCODING")}


def test_modules_of_the_working_folder_shadow_nothing_of_ours(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("random", "json", "logging", "typer", "rich", "torch", "numpy"):
        (theirs / f"{name}.py").write_text("1 / 0\n")
    done = subprocess.run([sys.executable, "-m", "sharpnb.cli", "--help"], capture_output=True, text=True, cwd=theirs,
                          env=toy_environment() | {"PYTHONPATH": str(Path(cli.__file__).parents[1])})
    assert done.returncode == 0 and "spectrum" in done.stdout, done.stderr


def test_a_reader_that_has_gone_ends_nothing(root):
    code = ("from sharpnb import cli, paths\nfor _ in range(9):\n    cli._console.say('x' * 99999)\n"
            "print('more' * 99999, flush=True)\n(paths.root() / 'went on').touch()")
    line = f"{shlex.quote(sys.executable)} -c \"{code}\" | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stderr == "" and (root / "went on").exists()


def test_a_full_disk_behind_it_is_known_and_ends_nothing(monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no such device")
    terminal = console.Terminal(file=open("/dev/full", "w"))  # noqa: SIM115
    terminal.print("one")
    terminal.say("two")
    assert "No space left" in str(terminal.failure)
    terminal.file.flush()  # what was held back goes nowhere, and raises nothing at the end
