import shutil
import sys
import tempfile
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import toy
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from sharpnb import doctor, paths


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.delenv("SHARPNB_DATA", raising=False)
    return toy.checkout(tmp_path, {"01_toy": toy.guarded()})


def test_this_machine_can_run_the_tests_and_so_the_quick_profile():
    found = {finding.what: finding for finding in doctor.examine()}
    assert {"Python", "packages", "PyTorch", "GPU", "cores", "memory", "disk", "kernel", "checkout",
            "writing", "digits", "cifar10"} <= found.keys()
    assert [found[name].state for name in ("Python", "PyTorch", "kernel", "checkout", "digits")] == ["ok"] * 5
    assert found["cifar10"].state == "note"


USAGE = namedtuple("usage", "total available free")
OTHER = KernelSpec(argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
REQUIRED = ["numpy>=99", "no-such-package>=1", "pytest>=99; extra == 'dev'", "papermill>=0; extra == 'notebooks'"]


@pytest.mark.parametrize(("check", "where", "name", "found", "problems", "words"), [
    (doctor.python, sys, "version_info", (3, 10, 4, "final", 0), 1, "3.11 or newer is needed"),
    (doctor.packages, metadata, "requires", lambda _: REQUIRED, 1,
     "wanted is >=99; no-such-package is missing: pip install"),
    (doctor.packages, metadata, "requires", lambda _: ["numpy>=1", *REQUIRED[2:]], 0, "2 packages, all as asked for"),
    (doctor.machine, psutil, "virtual_memory", lambda: USAGE(8e9, 1e9, 0), 1, "--jobs 1"),
    (doctor.machine, shutil, "disk_usage", lambda _: USAGE(8e9, 0, 1e6), 1, "make room"),
    (doctor.kernel, KernelSpecManager, "get_kernel_spec", lambda *_: OTHER, 1, "ipykernel install --sys-prefix"),
    (doctor.folders, tempfile, "TemporaryFile", lambda **_: Path("/").read_text(), 3, "change its owner"),
    (doctor.folders, paths, "notebooks", lambda: Path("/nowhere"), 1, "SHARPNB_ROOT"),
])
def test_what_is_wrong_is_a_problem_with_its_remedy(monkeypatch, check, where, name, found, problems, words):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: USAGE(8e9, 8e9, 0))
    monkeypatch.setattr(where, name, found)
    findings = list(check())
    assert sum(finding.state == "problem" for finding in findings) == problems
    assert words in "\n".join(finding.text for finding in findings)


def test_a_damaged_data_set_is_a_problem(root):
    folder = paths.datasets() / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (folder / name).write_text("not CIFAR-10")
    found = {finding.what: finding.state for finding in doctor.data_sets()}
    assert (found["digits"], found["cifar10"], found["svhn"]) == ("ok", "problem", "note")


def test_a_check_that_breaks_is_a_problem_and_the_others_go_on(monkeypatch):
    def broken():
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.python))
    assert [(finding.what, finding.state) for finding in doctor.examine()] == [("broken", "problem"), ("Python", "ok")]
