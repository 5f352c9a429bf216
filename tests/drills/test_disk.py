"""A disk that is full in the midst of a write, and a checkout that may only be read."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from harm import FORK, chances, plain_write, with_quota, without_override
from matplotlib import pyplot as plt
from toy import checkout, plain

from sharpnb import lab, paths, resume
from sharpnb.lab import figures
from sharpnb.runner import run

ALT = "A line that falls from the upper left to the lower right."


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record(value):
    lab.start("n").record("r", {"a": [value] * 500})


def picture(value):
    figure, ax = plt.subplots()
    ax.plot([0, value], [1, 0])
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data={"x": [0, value], "y": [1, 0]})


def state(value):
    resume.Checkpoint(paths.root() / "state.npz", ("key",)).save(lambda: {"rows": np.full((20, 20), value)}, force=True)


WRITES = {"record": record, "figure": picture, "state": state}


def files(root) -> dict:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk(project, monkeypatch, name):
    write = WRITES[name]
    write(1.0)
    before = files(project)
    limits = [luck.randrange(min(map(len, before.values()))) for luck in chances(f"a {name}, written anew", 4)]
    for limit in limits:
        said = with_quota(lambda: write(2.0), limit)
        assert "untouched. Free some space" in said[-1]
        assert files(project) == before, "the old files are there and nothing beside them"
    monkeypatch.setattr(paths, "write_whole", plain_write)
    monkeypatch.setattr(resume, "write_whole", plain_write)
    for limit in limits:
        with_quota(lambda: write(2.0), limit)
    assert files(project) != before, "the control: written in place it is lost"


def test_a_run_on_a_full_disk(project):
    """What the second notebook prints does not fit; with room again, the same command finishes."""
    checkout(project, {"01_small": plain("01", "print('small')"), "02_large": plain("02", "print('x' * 300_000)")})
    ended, committed = FORK.Queue(), files(project / "notebooks")
    said = with_quota(lambda: ended.put([(r.outcome, r.detail) for r in run(jobs=1)]), 150_000)
    first, second = ended.get(timeout=10)
    assert not said and first[0] == "done" and second[0] == "failed" and "File too large" in second[1]
    assert files(project / "notebooks") == committed
    assert [result.outcome for result in run()] == ["up to date", "done"]


# What somebody does in a checkout that is not theirs, the exit status, and what is said.
READ_ONLY = [
    (["-m", "sharpnb.cli", "run"], 2, "Permission denied), where a run keeps its copies. Make it writable"),
    (["-m", "sharpnb.cli", "run", "--dry-run"], 0, "01_toy"), (["-m", "sharpnb.cli", "list"], 0, "01_toy"),
    (["-c", "from sharpnb import lab; lab.start('n').record('r', {'a': [2.0] * 500})"], 1, "before is untouched"),
]


def test_a_read_only_checkout(project):
    checkout(project, {"01_toy": plain("01", "print(1)")})
    record(1.0)
    before = files(project)
    folders = [project, *(path for path in project.rglob("*"))]
    for path in folders:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for arguments, status, words in READ_ONLY:
            try:
                done = subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True,
                                      preexec_fn=without_override)
            except subprocess.SubprocessError:
                pytest.skip("root is not bound by the rights of files, and cannot lay its own down here")
            assert done.returncode == status and words in done.stdout + done.stderr, done.stderr
            assert files(project) == before
    finally:
        for path in folders:
            path.chmod(0o755 if path.is_dir() else 0o644)
    subprocess.run([sys.executable, "-P", *READ_ONLY[-1][0]], check=True)
    assert files(project) != before  # with rights to write, the record is another
