"""``sharpnb sweep`` as people run it: faults are sentences, nothing is lost, the status says how it ended."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from sharpnb import cli
from sharpnb.lab import grid, sweeps

FILE = """
data = {name = "digits", train_size = 60}
model = {name = "mlp", sizes = [64, 4, 10]}
train = {steps = 2, batch_size = 20, device = "cpu"}
[[grid]]
rule = "sgd"
lr = [0.1, 0.2]
seed = [0, 1]
"""
OWN = """from sharpnb.lab import load_data, models
def net(seed):
    return models.mlp((64, 4, 10), seed=seed)
def data():
    return load_data('digits', train_size=60)
def bad(seed):
    return net(seed // (1 - seed))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def call(folder, sharpnb):
    """Run ``sharpnb sweep`` on a file with this text; return the status and what was said."""

    def called(text: str, *arguments: str, name: str = "s.toml") -> tuple[int, str]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        status, out, err = sharpnb("sweep", name, "--jobs", 1, *arguments)
        return status, " ".join((out + err).split())

    return called


def test_cells_are_counted_first_and_the_status_is_0(call, folder):
    status, said = call(FILE)
    assert status == 0
    assert said.startswith("4 cells (lr 2 × seed 2), 2 steps each. 4 cells, 0 failed, 0 diverged: s.csv")
    assert len(pd.read_csv(folder / "s.csv")) == 4
    assert call(FILE)[0] == 0, "the former table is replaced"
    with pytest.raises(ValueError, match=r"10,000,000,000,000 cells .seed 10,000,000,000,000."):
        grid.cells_of({"rule": "sgd", "lr": 0.1, "seed": range(10**13)})


@pytest.mark.parametrize(("change", "status", "words"), [
    (('"mlp", sizes = [64, 4, 10]', '"mine.py:bad"'), 1, ["2 failed", "2 cells, the first is row 2", "zero"]),
    (("[0.1, 0.2]", "[0.1, 1e300]"), 0, ["0 failed", "2 diverged"]),
    (("[0.1, 0.2]", "[1e300]"), 1, ["0 failed, 2 diverged"]),
])
def test_the_status_says_whether_cells_failed(change, status, words, call, folder):
    (folder / "mine.py").write_text(OWN)
    found, said = call(FILE.replace("seed = [0, 1]", "seed = [0, 1]\nmomentum = 0.9").replace(*change).replace(
        'device = "cpu"', 'device = "cpu", shard_size = 1'))
    assert found == status and all(word in said for word in words), said


@pytest.mark.parametrize("lr", ["{log2 = [-900, 900]}", f"{list(range(1, 2000))}"])
def test_a_grid_is_counted_before_it_is_made(lr, call, monkeypatch):
    monkeypatch.setattr(grid.itertools, "product", lambda *axes: pytest.fail("made"))
    status, said = call(FILE.replace("[0.1, 0.2]", lr).replace("[0, 1]", f"{list(range(1000))}"))
    assert status == 2 and ",000 cells (lr 1," in said and "100,000" in said


@pytest.mark.parametrize(("old", "new", "words"), [
    ("train_size", "train_sise", ["[data]: there is no 'train_sise'", "Did you mean 'train_size'?"]),
    ('"digits"', '"digit"', ["[data]", "'digit'", "Did you mean 'digits'?"]),
    ('name = "digits", ', "", ["[data]: it needs name"]),
    ('"mlp"', '"mpl"', ["[model]", "no such model", "Did you mean 'mlp'?"]),
    ("sizes", "size", ["'size'", "Did you mean 'sizes'?"]),
    ("sizes =", "seed = 3, sizes =", ["[model]", "'seed'"]), ("[64, 4, 10]", '"64"', ["model", "64"]),
    ("steps = 2", "step = 2", ["[train]", "Did you mean 'steps'?", "steps is missing"]),
    ("steps = 2", "steps = true", ["steps = True", "whole number, 1"]),
    ("batch_size = 20", "batch_size = 0", ["batch_size = 0", "1 or more"]),
    ('"cpu"', "0", ["device = 0", "a text"]), ('"cpu"', '"cpu", bf16 = 1', ["bf16 = 1", "true or false"]),
    ('"cpu"', '"cpu", schedule = "cosin"', ["Did you mean 'cosine'?"]),
    ("[[grid]]", "[[grids]]", ["[grids] is no part", "Did you mean 'grid'?", "[grid] is missing"]),
    ('"sgd"', '"sgdd"', ["[[grid]]", "Did you mean 'sgd'?"]), ("lr =", "learning_rate = 1\nlr =", ["learning_rate"]),
    ("lr = [0.1, 0.2]", 'lr = ["0.1"]', ["lr = '0.1'", "a number"]),
    ("lr = [0.1, 0.2]", "lr = [[0.1]]", ["lr = [0.1]"]),
    ("lr = [0.1, 0.2]", "lr = {log2 = [3]}", ["log2 = [low, high]", "low first"]),
    ("lr = [0.1, 0.2]", "lr = {log2 = [0, 5000]}", ["1023"]), ("lr = [0.1, 0.2]", "lr = nan", ["lr = nan", "finite"]),
    ('"sgd"', '"adamw"\nbetas = 0.9', ["betas = 0.9", "two numbers"]), ("[0, 1]", "[0, 0]", ["same"]),
    ("[[grid]]", "[grid]\nx = 3\n[[grid]]", ["overwrite"]), ("[0, 1]", "2000-01-01", ["seed: datetime.date(2000"]),
])
def test_each_fault_of_a_file_is_a_sentence(old, new, words, call, folder):
    assert old in FILE
    status, said = call(FILE.replace(old, new))
    assert status == 2 and all(word in said for word in words) and "Traceback" not in said, said
    assert not (folder / "s.csv").exists() and not (folder / "root").exists()


def test_all_faults_are_told_at_once(call):
    status, said = call(FILE.replace("steps = 2", "steps = 0").replace('"mlp"', '"mpl"').replace("lr =", "ls ="))
    assert status == 2 and said.count("s.toml: ") == 3


@pytest.mark.parametrize("text", [b"\xff\xfe", b"data = [3]\nmodel = 'x'\ntrain = 3\ngrid = 3\n", b"", None])
def test_a_file_that_is_none_or_not_there(text, folder, call, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda file, _: None if text is None else file.write_bytes(text))
    status, said = call("")
    assert status == 2 and "s.toml: " in said


@pytest.mark.parametrize(("name", "out", "there"), [
    ("s.csv", None, None), ("s.toml", "s.toml", None), ("s.toml", "link.csv", "link"), ("s.toml", "x", "folder"),
    ("s.toml", None, "my,own,numbers\n1,2,3\n"),
])
def test_nothing_of_the_users_is_written_over(name, out, there, call, folder):
    target = folder / (out or "s.csv")
    if there == "folder":
        target.mkdir()
    elif there == "link":
        target.symlink_to(folder / "s.toml")
    elif there:
        target.write_text(there)
    status, said = call(FILE, *(["--out", out] if out else []), name=name)
    assert status == 2 and "is no table of a sweep" in said and (folder / name).read_text() == FILE
    assert not (folder / "root").exists() and (there in (None, "folder", "link") or target.read_text() == there)


@pytest.mark.parametrize(("model", "where"), [
    ("mine.py:net", "there"), ("mine:net", "there"), ("sub/mine.py:net", "sub")])
def test_functions_are_found_beside_the_file_then_in_the_working_folder(model, where, call, folder):
    for place in ("", where):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "mine.py").write_text(OWN)
    text = FILE.replace('"digits", train_size = 60', '"mine.py:data"')
    text = text.replace('"mlp", sizes = [64, 4, 10]', f'"{model}"')
    status, said = call(text, name="there/s.toml")
    assert status == 0, said
    kept = [json.loads(file.read_text())["about"] for file in (folder / "root").rglob("*.json")]
    beside = folder / where / "mine.py"
    assert {about["model"]["name"] for about in kept} == {f"{beside}:net"}
    assert {about["data"]["name"] for about in kept} == {f"{beside if where == 'there' else folder / 'mine.py'}:data"}


def test_the_example_is_valid_and_says_that_it_names_code(call, sharpnb, monkeypatch):
    status, example, _ = sharpnb("sweep", "--example")
    assert not status and "names code that is run" in example
    assert len(grid.cells_of(tomllib.loads(example)["grid"])) == 24
    monkeypatch.setattr(sweeps, "_results", lambda shards, *_: {
        k: {"reason": ""} for places, _ in shards.values() for k in places})
    assert "24 cells, 0 failed" in call(example)[1]
    text = tomllib.loads((Path(cli.__file__).parents[1] / "pyproject.toml").read_text())
    assert "lab/sweep_example.toml" in text["tool"]["setuptools"]["package-data"]["sharpnb"]  # and so in the wheel


def interrupted(folder: Path, text: str, *arguments: str, until: str = "cells") -> tuple[int, str]:
    """Run the command in a process group as a terminal does, and press Ctrl-C some time after it has said something."""
    (folder / "s.toml").write_text(text)
    around = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpnb.cli", "sweep", "s.toml", *arguments], text=True, bufsize=1, env=around,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first = ""
    while until not in first and process.poll() is None:
        first += process.stdout.readline()
    time.sleep(4)
    os.killpg(process.pid, signal.SIGINT)
    try:
        rest, _ = process.communicate(timeout=60)
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, first + rest


@pytest.mark.parametrize("how", ["a scheduler that is not there", "a scheduler without workers", "two processes"])
def test_ctrl_c_is_obeyed_at_once(how, folder):
    text = FILE.replace("steps = 2", "steps = 2_000_000")
    if how == "a scheduler without workers":
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster:
            status, said = interrupted(folder, text, "--scheduler", cluster.scheduler_address, until="has no worker")
    elif how == "a scheduler that is not there":
        status, said = interrupted(folder, text, "--scheduler", "tcp://127.0.0.1:1")
    else:
        status, said = interrupted(folder, text, "--jobs", "2")
    assert status == 130 and "Interrupted. Finished shards are kept" in said and "Traceback" not in said, said


def test_a_scheduler_that_does_not_answer_is_a_sentence(call, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", lambda address: (_ for _ in ()).throw(OSError("Timed out")))
    status, said = call(FILE, "--scheduler", "tcp://127.0.0.1:1")
    assert status == 2 and "No Dask scheduler answers at tcp://127.0.0.1:1 (Timed out)" in said
