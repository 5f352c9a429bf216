"""`sharpnb doctor`: what is wrong is named with its remedy."""

import shutil
from collections import namedtuple
from importlib import metadata

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from sharpnb import doctor

USAGE = namedtuple("usage", "total available free")
OTHER = KernelSpec(argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
REQUIRED = ["numpy>=99", "no-such-package>=1", "pytest>=99; extra == 'dev'", "papermill>=0; extra == 'notebooks'"]


def test_this_machine_can_run_the_tests_and_so_the_quick_profile(project):
    remedies = {what: remedy for what, _, remedy in doctor.examine()}
    assert list(remedies) == ["packages", "GPU", "memory", "disk", "kernel python3"]
    assert [remedies[name] for name in ("packages", "GPU", "kernel python3")] == [""] * 3


@pytest.mark.parametrize(("where", "name", "stands_in", "what", "words"), [
    (metadata, "requires", lambda _: REQUIRED, "packages", "no-such-package>=1 is wanted, none is there: pip install"),
    (psutil, "virtual_memory", lambda: USAGE(8e9, 1e9, 0), "memory", "1.0 GB free, wanted are 2: close other programs"),
    (shutil, "disk_usage", lambda _: USAGE(8e9, 0, 1e6), "disk", "0.0 GB free, wanted are 1: make room"),
    (KernelSpecManager, "get_kernel_spec", lambda *_: OTHER, "kernel python3", "ipykernel install --sys-prefix"),
])
def test_what_is_wrong_is_named_with_its_remedy(project, monkeypatch, where, name, stands_in, what, words):
    monkeypatch.setattr(where, name, stands_in)
    found = {what: f"{text}: {remedy}" for what, text, remedy in doctor.examine() if remedy}
    assert what in found and words in found[what] and "pytest" not in found.get("packages", "")
