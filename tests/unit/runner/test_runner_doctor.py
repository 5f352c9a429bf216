import shutil
import sys
from collections import namedtuple
from importlib import metadata

import pytest
import toy

from sharpnb import doctor, paths


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.delenv("SHARPNB_DATA", raising=False)
    return toy.checkout(tmp_path, {"01_toy": toy.guarded()})


def states(check) -> list[str]:
    return [finding.state for finding in check()]


def text(check) -> str:
    return "\n".join(finding.text for finding in check())


def test_this_machine_can_run_the_tests_and_so_the_quick_profile():
    found = {finding.what: finding for finding in doctor.examine()}
    assert {"Python", "packages", "PyTorch", "GPU", "cores", "memory", "disk", "kernel", "checkout",
            "writing", "digits", "cifar10"} <= found.keys()
    assert [found[name].state for name in ("Python", "PyTorch", "kernel", "checkout", "digits")] == ["ok"] * 5
    assert found["cifar10"].state == "note"


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    assert "3.11 or newer is needed" in text(doctor.python)


def test_a_missing_and_an_old_package_are_named_with_the_command(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: [
        "numpy>=99", "no-such-package>=1", "pytest>=1; extra == 'dev'", "papermill>=0; extra == 'notebooks'"])
    (finding,) = doctor.packages()
    assert finding.state == "problem"
    assert "wanted is >=99; no-such-package is missing: pip install" in finding.text
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=1", "pytest>=99; extra == 'dev'"])
    assert states(doctor.packages) == ["ok"]


def test_little_memory_and_a_full_disk_are_problems(monkeypatch):
    import psutil

    usage = namedtuple("usage", "total available free")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: usage(8e9, 1e9, 0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(8e9, 0, 1e6))
    assert states(doctor.machine) == ["ok", "problem", "problem"]
    assert "--jobs 1" in text(doctor.machine) and "make room" in text(doctor.machine)


def test_a_kernel_of_another_python_is_a_problem(monkeypatch):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    other = KernelSpec(argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: other)
    assert states(doctor.kernel) == ["problem"]
    assert "ipykernel install --sys-prefix" in text(doctor.kernel)


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert states(doctor.folders) == ["ok", "problem", "problem", "problem"]


def test_no_checkout_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path / "elsewhere"))
    assert "SHARPNB_ROOT" in text(doctor.folders)


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
