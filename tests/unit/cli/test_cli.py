"""The command as a user types it, in this process."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
import toy

from sharpnb import cli, doctor, paths, runner
from sharpnb.lab import Claim
from sharpnb.runner import Result


@pytest.fixture(autouse=True)
def root(project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    return toy.checkout(project, {"01_toy": toy.guarded(), "02_more": toy.plain("02", "pass")})


@pytest.fixture
def called(monkeypatch):
    """Stand in for the runner; return what it is called with."""
    seen = {}

    def run(names, profile, jobs, given, **options):
        seen.update(names=names, profile=profile, jobs=jobs, given=given, **options)
        return [Result("01_toy", "because", "done", 1.0), Result("02_more", "because", seen.get("end", "up to date"))]

    monkeypatch.setattr(runner, "run", run)
    return seen


@pytest.mark.parametrize("command", [["-m", "sharpnb"], ["-m", "sharpnb.cli"]])
def test_the_package_is_the_command_and_knows_its_version(command):
    done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"sharpnb {metadata.version('sharpnb')}\n")


SCRATCH = {
    "Untitled": (json.dumps(toy.notebook(toy.code("1 + 1", "a"))), "has 0 cells tagged 'parameters'"),
    "03_broken": ("{", "cannot be read as a notebook"),
    "03_old": ('{"worksheets": []}', "cannot be read as a notebook"),
    "04_cells": ('{"cells": [1]}', "cannot be read as a notebook"),
    "06_parameters": (json.dumps(toy.notebook(toy.code("seed = f()", "a", ("parameters",)))), "plain literals"),
}


@pytest.mark.parametrize("name", SCRATCH)
def test_a_scratch_or_broken_notebook_is_named_and_the_others_go_on(sharpnb, root, name):
    text, reason = SCRATCH[name]
    (root / "notebooks" / f"{name}.ipynb").write_text(text)
    status, out, _ = sharpnb("list")
    assert status == 0 and f"Passed over: {name}.ipynb" in out and reason in out
    assert all(word in out for word in ("02_more", "A toy", "not run yet"))
    status, out, _ = sharpnb("run", "--dry-run")
    assert status == 0 and f"Passed over: {name}.ipynb" in out and "run  01_toy" in out and f"run  {name}" not in out
    status, out, _ = sharpnb("run", "--dry-run", "2")
    assert (status, out) == (0, "run  02_more: not run yet on this machine\n"), "of what was asked for"
    for asked in (name, *([name[:2]] if name[:2].isdigit() else [])):
        status, _, err = sharpnb("run", "--dry-run", asked)
        assert status == 2 and reason in err
    assert not (root / "data").exists()


def _full(error=None):
    error = OSError(28, "No space left on device")
    error.add_note("what was there before is untouched")
    return error


@pytest.mark.parametrize(("raised", "expected", "words"), [
    (KeyboardInterrupt(), 130, "the same command goes on from there"), (_full(), 2, "No space left"),
    (_full(), 2, "untouched"), (ModuleNotFoundError(name="papermill"), 2, "pip install 'sharpnb[notebooks]'")])
def test_what_goes_wrong_is_a_message_and_a_status(sharpnb, monkeypatch, raised, expected, words):
    def fails(*arguments, **options):
        raise raised

    monkeypatch.setattr(runner, "run", fails)
    status, _, err = sharpnb("run")
    assert status == expected and words in err


def test_every_option_reaches_the_runner(sharpnb, called):
    status, out, _ = sharpnb(
        "run", "01", "2", "--profile", "full", "--jobs", "3", "-p", "seed", "-3", "-p", "rho=0.1", "--parameter",
        "device", "cuda:1", "--force")
    assert status == 0
    assert called["names"] == ["01", "2"]
    assert called["given"] == {"seed": "-3", "rho": "0.1", "device": "cuda:1"}
    assert [called[name] for name in ("profile", "jobs", "force", "update")] == ["full", 3, True, False]
    assert out == "1 done, 1 up to date.\n"
    called["end"] = "kernel died"
    assert sharpnb("run")[0] == 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "03"], "There is no notebook '03'"), (["run", "--profile", "quik"], "Did you mean 'quick'?"),
    (["run", "-p", "seed"], "a parameter needs a name and a value"), (["run", "-p", "seed", "many"], "of type int"),
    (["report"], "There are no claims in data/records yet"), (["--versoin"], "--version")])
def test_what_can_be_foreseen_is_a_message_and_no_traceback(sharpnb, arguments, message):
    status, out, err = sharpnb(*arguments)
    assert status == 2 and message in err and "Traceback" not in out + err


def test_the_report_of_an_installed_package_asks_for_a_checkout(sharpnb, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "sharpnb" / "cli.py"))
    status, _, err = sharpnb("report")
    assert status == 2 and "Call it in a checkout, or set SHARPNB_ROOT to one" in err


def test_the_report_is_written_and_summed_up(sharpnb, root):
    toy.listed(root, "a", paper="SAM (ICLR 2021)", unit="cosine")
    claim = Claim("a", (0.9, 1.0, 1.1))
    record = paths.records("01_toy", "quick") / "claims.json"
    paths.write_whole(record, json.dumps({"values": {"claims": [claim.as_dict()]}, "provenance": {}}))
    status, out, _ = sharpnb("report")
    assert status == 0 and "new are REPORT.md, REPORT.html." in out
    text = (root / "REPORT.md").read_text()
    assert "SAM (ICLR 2021)" in text and "[+1.00 \\[+0.75, +1.25\\] cosine]" in text
    paths.write_whole(record, "{")
    status, _, err = sharpnb("report")
    assert status == 2 and "is damaged" in err


def test_data_says_where_each_set_belongs(sharpnb, root):
    status, out, _ = sharpnb("data")
    assert status == 0 and "cifar10" in out and "SHARPNB_DATA" in out
    assert str(paths.datasets()) in out and "MD5" in out


def test_the_doctors_problems_are_the_exit_status(sharpnb, monkeypatch):
    for remedy, status, words in (("make room", 1, "disk: full: make room"), ("", 0, "disk: full\nProblems: 0")):
        monkeypatch.setattr(doctor, "examine", lambda remedy=remedy: iter([("disk", "full", remedy)]))
        found, out, _ = sharpnb("doctor")
        assert found == status and words in out


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"]])
def test_nothing_heavy_is_imported_for_a_quick_answer(arguments):
    code = (
        "import sys; from sharpnb import cli\n"
        f"sys.argv = ['sharpnb', *{arguments!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'papermill', 'nbformat', 'pandas', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
