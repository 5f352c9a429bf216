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


@pytest.mark.parametrize(("change", "status", "words"), [
    ((), 0, ["4 cells, 0 failed, 0 diverged: s.csv"]),
    (('"mlp", sizes = [64, 4, 10]', '"mine.py:bad"'), 1, ["2 failed", "2 cells, the first is row 2", "zero"]),
    (("[0.1, 0.2]", "[0.1, 1e300]"), 0, ["0 failed", "2 diverged"]),
    (("[0.1, 0.2]", "[1e300]"), 1, ["0 failed, 2 diverged"]),
])
def test_the_status_says_whether_cells_failed(change, status, words, call, folder):
    (folder / "mine.py").write_text(OWN)
    text = FILE.replace("seed = [0, 1]", "seed = [0, 1]\nmomentum = 0.9").replace(*change or ("", "", 0))
    for _ in range(2):  # the former table is replaced
        found, said = call(text.replace('device = "cpu"', 'device = "cpu", shard_size = 1'))
        assert found == status and all(word in said for word in words), said
    assert len(pd.read_csv(folder / "s.csv")) in (2, 4)


@pytest.mark.parametrize(("old", "new", "words"), [
    ("train_size", "train_sise", ["train_sise"]), ('"digits"', '"digit"', ["Did you mean 'digits'?"]),
    ('name = "digits", ', "", ["there is no such data"]), ('"mlp"', '"mpl"', ["Did you mean 'mlp'?"]),
    ("sizes =", "seed = 3, sizes =", ["seed"]), ("steps = 2", "step = 2", ["[train]", "Did you mean 'steps'?"]),
    ("steps = 2", "steps = true", ["steps = True"]), ("[[grid]]", "[[grids]]", ["[grid", "is missing, or no part"]),
    ('"sgd"', '"sgdd"', ["Did you mean 'sgd'?"]), ("[[grid]]", "[grid]\nx = 3\n[[grid]]", ["overwrite"]),
    ("[0, 1]", "2000-01-01", ["seed: datetime.date(2000"]),
])
def test_a_fault_of_a_file_is_a_sentence(old, new, words, call, folder):
    assert old in FILE
    status, said = call(FILE.replace(old, new))
    assert status == 2 and all(word in said for word in words) and "s.toml: " in said and "Traceback" not in said, said
    assert not (folder / "s.csv").exists() and not (folder / "root").exists()


@pytest.mark.parametrize("text", [b"\xff\xfe", b"data = [3]\nmodel = 'x'\ntrain = 3\ngrid = 3\n", b"", None])
def test_a_file_that_is_none_or_not_there(text, folder, call, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda file, _: None if text is None else file.write_bytes(text))
    status, said = call("")
    assert status == 2 and "s.toml: " in said


@pytest.mark.parametrize(("name", "out", "there"), [
    ("s.csv", None, None), ("s.toml", "s.toml", None), ("s.toml", "x", "folder"),
    ("s.toml", None, "my,own,numbers\n1,2,3\n"),
])
def test_nothing_of_the_users_is_written_over(name, out, there, call, folder):
    target = folder / (out or "s.csv")
    if there == "folder":
        target.mkdir()
    elif there:
        target.write_text(there)
    status, said = call(FILE, *(["--out", out] if out else []), name=name)
    assert status == 2 and "is no table of a sweep" in said and (folder / name).read_text() == FILE
    assert not (folder / "root").exists() and (there in (None, "folder") or target.read_text() == there)


@pytest.mark.parametrize(("model", "where"), [("mine:net", "there"), ("sub/mine.py:net", "sub")])
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


@pytest.mark.parametrize("how", ["a scheduler without workers", "two processes"])
def test_ctrl_c_is_obeyed_at_once(how, folder):
    """In a process group, as a terminal has it, while cells are trained or waited for."""
    (folder / "s.toml").write_text(FILE.replace("steps = 2", "steps = 2_000_000"))
    call = [sys.executable, "-m", "sharpnb.cli", "sweep", "s.toml"]
    distributed = pytest.importorskip("distributed") if "scheduler" in how else None
    cluster = distributed and distributed.LocalCluster(n_workers=0, dashboard_address=None)
    process = subprocess.Popen(
        [*call, *(["--scheduler", cluster.scheduler_address] if cluster else ["--jobs", "2"])], text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "TQDM_DISABLE": ""},
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    first = ""
    while "sweep" not in first and process.poll() is None:  # its bar
        first += process.stdout.read(1)
    time.sleep(4)
    os.killpg(process.pid, signal.SIGINT)
    try:
        said = first + process.communicate(timeout=60)[0]
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
        cluster and cluster.close()
    assert process.returncode == 130 and "Interrupted. Finished shards are kept" in said and "Traceback" not in said


def test_a_scheduler_that_does_not_answer_is_a_sentence(call, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", lambda address: (_ for _ in ()).throw(OSError("Timed out")))
    status, said = call(FILE, "--scheduler", "tcp://127.0.0.1:1")
    assert status == 2 and "No Dask scheduler answers at tcp://127.0.0.1:1 (Timed out)" in said
