"""Sweeps: the table, what a dead worker costs, what fails aloud. The truth is train_many and an uninterrupted sweep."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from sharpnb.lab import load_data, models, sweep, sweeps, train_many

DATA = {"name": "digits", "train_size": 100}
MODEL = {"name": "mlp", "sizes": (64, 6, 10)}
GRID = {"rule": ["sgd", "sgdw"], "lr": [0.05, 0.1], "weight_decay": [0.0, 0.01], "seed": [0, 1]}
OPTIONS = {"steps": 8, "batch_size": 25, "dtype": "float64", "device": "cpu", "progress": False, "shard_size": 3}
ONE = {"rule": "sgd", "lr": 0.1}
same = partial(pd.testing.assert_frame_equal, check_exact=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return sweep(GRID, DATA, MODEL, **OPTIONS, folder=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def trained(monkeypatch):
    """A list to which every trained shard is added."""
    made, run = [], sweeps.run
    monkeypatch.setattr(sweeps, "run", lambda shard: made.append(1) or run(shard))
    return made


def test_the_table_is_the_grid_with_train_manys_results(whole):
    assert list(zip(whole["rule"], whole["lr"], whole["weight_decay"], whole["seed"], strict=True)) == [
        (r, a, d, s) for r in GRID["rule"] for a in GRID["lr"] for d in GRID["weight_decay"] for s in GRID["seed"]]
    cell = {"rule": "sgdw", "lr": 0.1, "weight_decay": 0.01, "seed": 1}
    alone = train_many([cell], load_data("digits", train_size=100), lambda seed: models.mlp((64, 6, 10), seed=seed),
                       steps=8, batch_size=25, dtype=torch.float64, device="cpu", progress=False).final()[0]
    assert whole.iloc[-1]["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-9)
    assert (whole["reason"] == "").all() and whole["curve"].map(len).eq(1).all()


def test_steps_are_an_axis_too_and_each_seed_can_have_its_own_split(tmp_path):
    grid = {"rule": "sgd", "lr": 0.1, "seed": [0, 1], "steps": [4, 8]}
    options = {k: v for k, v in OPTIONS.items() if k != "steps"} | {"folder": tmp_path}
    table = sweep(grid, DATA | {"seed": "cell"}, MODEL, **options, evaluate_every=4)
    assert [len(curve) for curve in table["curve"]] == [1, 2, 1, 2]
    own, fixed = table["test_loss"], sweep(grid, DATA, MODEL, **options)["test_loss"]
    assert fixed[0] == pytest.approx(own[0]) and fixed[3] != own[3]


def test_a_diverging_cell_is_a_row_with_its_reason_and_hurts_no_other(tmp_path):
    table = sweep({"rule": "sgd", "lr": [1e300, 0.1]}, DATA, MODEL, **OPTIONS, folder=tmp_path)
    assert "not finite at step 8" in table["reason"][0] and math.isnan(table["train_loss"][0])
    other = sweep({"rule": "sgd", "lr": [0.2, 0.1]}, DATA, MODEL, **OPTIONS, folder=tmp_path)
    same(table[1:], other[1:])


@pytest.mark.parametrize(("change", "words"), [
    ({"grid": {}}, ["has no cell"]), ({"grid": ONE | {"lr": [0.1, -0.1]}}, ["setting 1", "lr = -0.1"]),
    ({"grid": [ONE, {"rule": "sgd", "lr": [0.2, 0.1], "seed": 0}]}, ["0 and 2", "same"]),
    ({"grid": ONE | {"steps": [0]}}, ["steps = 0"]), ({"model": {"name": "mpl"}}, ["mpl", "module:function"]),
    ({"model": {"name": "mlp", "sizes": [10, 10]}}, ["shape"]), ({"model": {"name": "mlp", "width": 3}}, ["width"]),
    ({"model": {"name": "mlp", "f": print}}, ["numbers, texts"]), ({"jobs": 0}, ["jobs = 0"]),
    ({"steps": None}, ["steps is missing"]), ({"steps": 0}, ["steps = 0", "1 or more"]),
    ({"grid": ONE | {"lr": {"log2": [-2, 0], "times": True}}}, ["times", "low first"]),
    ({"shard_size": 0}, ["shard_size = 0", "1 or more"]),
    ({"steps": True}, ["steps = True", "whole number"]), ({"evaluate_every": -1}, ["evaluate_every = -1", "0 or more"]),
    ({"schedule": "cosin"}, ["cosin"]), ({"dtype": "half"}, ["dtype = 'half'", "float64"]),
    ({"device": "gpu"}, ["'gpu'", "cuda"]), ({"grid": ONE | {"lr": ["0.1"]}}, ["lr = '0.1'", "a number"]),
    ({"grid": ONE | {"lr": [[0.1]]}}, ["lr = [0.1]"]), ({"grid": ONE | {"lr": float("nan")}}, ["lr = nan", "finite"]),
    ({"grid": {"rule": "adamw", "lr": 0.1, "betas": 0.9}}, ["betas = 0.9", "two numbers"]),
    ({"grid": ONE | {"lr": {"log2": [0, 5000]}}}, ["1023"]), ({"grid": ONE | {"lr": {"log2": [3]}}}, ["low first"]),
    ({"grid": ONE | {"seed": range(10**13)}}, ["10,000,000,000,000 cells", "100,000"]),
])
def test_what_is_wrong_is_told_at_once(change, words, tmp_path):
    given = {"grid": GRID, "data": DATA, "model": MODEL, **OPTIONS, "folder": tmp_path} | change
    with pytest.raises(ValueError) as error:
        sweep(**given)
    assert all(word in str(error.value) for word in words) and not list(tmp_path.iterdir())


def test_a_call_again_trains_nothing_and_another_call_finds_nothing(whole, tmp_path, trained):
    options = OPTIONS | {"folder": tmp_path}
    same(sweep(GRID, DATA, MODEL, **options), whole)
    same(sweep(GRID, DATA, MODEL, **options), whole)
    assert len(trained) == 6
    kept = next(tmp_path.iterdir())
    assert json.loads(kept.read_text())["about"]["cells"][0]["rule"] in GRID["rule"]
    kept.write_text('{"half a')
    same(sweep(GRID, DATA, MODEL, **options), whole)
    assert len(trained) == 7
    sweep(GRID, DATA, MODEL, **options | {"batch_size": 20})
    assert len(trained) == 13


@pytest.mark.parametrize("what", ["package", "data", "torch", "own"])
def test_a_kept_shard_is_not_found_once_what_it_depends_on_has_changed(tmp_path, monkeypatch, what, trained):
    monkeypatch.setattr(sweeps, "pick_device", lambda name: {"auto": "cpu"}.get(name, name))
    model = {"name": "sharpnb.lab.models:mlp", "sizes": (64, 6, 10)} if what == "own" else MODEL
    for device in ("cpu", "auto"):  # what auto comes to is what counts
        sweep(ONE, DATA, model, **OPTIONS | {"device": device}, folder=tmp_path)
        assert len(trained) == 1
    reached = sweeps.sources.digests(["import sharpnb.lab.sweeps"])
    assert {"sharpnb/rules.py", "sharpnb/optim/schedules.py", "sharpnb/many/schedules.py"} <= reached.keys()
    if what == "package":
        monkeypatch.setattr(sweeps.sources, "digests", lambda code: reached | {"sharpnb/rules.py": "another"})
    elif what == "data":
        monkeypatch.setattr(sweeps.datafiles, "fingerprint", lambda name: "another")
    elif what == "own":
        monkeypatch.setattr(sweeps.usercode, "digest", lambda name: "another")
    else:
        monkeypatch.setattr(sweeps.torch, "__version__", "another")
    sweep(ONE, DATA, model, **OPTIONS, folder=tmp_path)
    assert len(trained) == 2


def test_a_failing_shard_is_tried_once_more_and_then_told(whole, tmp_path, monkeypatch):
    original, tried = sweeps.run, []

    def fails(shard, always):
        if shard.cells[0]["rule"] == "sgdw" and shard.cells[0]["lr"] == 0.05 and (always or shard.cells not in tried):
            tried.append(shard.cells)
            raise RuntimeError("the disk is on fire")
        return original(shard)

    monkeypatch.setattr(sweeps, "run", partial(fails, always=False))
    same(sweep(GRID, DATA, MODEL, **OPTIONS, folder=tmp_path / "once"), whole)
    assert tried
    monkeypatch.setattr(sweeps, "run", partial(fails, always=True))
    with pytest.warns(UserWarning, match=r"the disk is on fire.*'lr': 0\.05"):
        table = sweep(GRID, DATA, MODEL, **OPTIONS, folder=tmp_path / "always")
    failed = table["reason"].str.contains("failed twice: RuntimeError: the disk is on fire")
    assert 0 < failed.sum() < len(table) and table.loc[failed, "test_loss"].isna().all()
    same(table[~failed], whole[~failed])
    monkeypatch.setattr(sweeps, "run", original)  # the fire is out: the same call completes the table
    same(sweep(GRID, DATA, MODEL, **OPTIONS, folder=tmp_path / "always"), whole)


DIES_ONCE = """
import os, pathlib, signal
from sharpnb.lab import models
def build(flag, seed):
    if seed == 1 and not pathlib.Path(flag).exists():
        pathlib.Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return models.mlp((64, 6, 10), seed=seed)
"""


@pytest.mark.parametrize("kind", ["two processes", "two Dask workers"])
def test_a_killed_worker_costs_nothing_but_its_shard_and_two_give_the_same_bits(kind, whole, tmp_path, monkeypatch):
    (tmp_path / "dies_once.py").write_text(DIES_ONCE)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"name": "dies_once:build", "flag": str(tmp_path / "died")}
    if kind == "two processes":
        same(sweep(GRID, DATA, model, **OPTIONS, jobs=2, folder=tmp_path / "disturbed"), whole)
    else:
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            same(sweep(GRID, DATA, model, **OPTIONS, client=cluster.scheduler_address, folder=tmp_path / "kept"), whole)
            with distributed.Client(cluster) as client:
                same(sweep(GRID, DATA, model, **OPTIONS, client=client, folder=tmp_path / "by client"), whole)
    assert (tmp_path / "died").exists()  # a worker did die


FILE = """
data = {name = "digits", train_size = 100}
model = {name = "ownnet.py:build"}
train = {steps = 8, batch_size = 25, dtype = "float64", device = "cpu", shard_size = 3}
[[grid]]
rule = ["sgd", "sgdw"]
lr = {log2 = [-1, 0], times = 0.1}
weight_decay = [0.0, 0.01]
seed = [0, 1]
"""
OWN = "from nets import build as built\ndef build(width=6, *, seed):\n    return built(width, seed)\n"
NETS = "from sharpnb.lab import models\ndef build(width, seed):\n    return models.mlp((64, width, 10), seed=seed)\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a network of one's own, its neighbour, and a neighbour that is called like Python's random."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in (("ownnet.py", OWN), ("nets.py", NETS), ("random.py", "1 / 0\n"), ("heatmap.toml", FILE)):
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in ("ownnet", "nets"):
        sys.modules.pop(name, None)


def test_a_file_says_the_same_as_a_call_and_its_worker_processes_find_ones_own_network(whole, project):
    call = [sys.executable, "-m", "sharpnb.cli", "sweep", "heatmap.toml", "--jobs", "2"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "SHARPNB_ROOT": str(project)})
    assert done.returncode == 0 and "16 cells, 0 failed" in done.stdout, done.stderr
    written = pd.read_csv(project / "heatmap.csv", keep_default_na=False)
    assert written["test_loss"].tolist() == whole["test_loss"].tolist() and "curve" not in written


def test_dask_workers_elsewhere_find_a_network_of_the_working_folder(whole, project, tmp_path_factory):
    distributed = pytest.importorskip("distributed")
    own = {"PYTHONPATH": str(Path(sweeps.__file__).parents[2])}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, preload_nanny=[], env=own,
                                  local_directory=str(tmp_path_factory.mktemp("worker"))) as cluster:
        with distributed.Client(cluster) as client:
            client.run(lambda: (__import__("os").chdir("/"), __import__("sys").path.__setitem__(slice(None), [
                part for part in __import__("sys").path if str(part) not in ("", str(project))])))
        model = {"name": "ownnet:build", "width": 6}
        same(sweep(GRID, DATA, model, **OPTIONS, folder=project / "kept", client=cluster.scheduler_address), whole)


def script(folder, text, **files):
    for name, content in {"mine": text, **files}.items():
        (folder / f"{name}.py").write_text(content)
    return subprocess.run([sys.executable, "mine.py"], cwd=folder, capture_output=True, text=True, timeout=300)


CALL = """
table = sweep({"rule": "sgd", "lr": [0.1, 0.2]}, data={"name": "digits", "train_size": 100}, model=MODEL,
              steps=2, jobs=2, shard_size=1, folder="shards", progress=False)
print("REASONS", sorted(set(table["reason"])), table["test_loss"].notna().sum())
"""
BUILD = "\nfrom sharpnb.lab import models\ndef build(seed):\n    return models.mlp((64, 4, 10), seed=seed)\n"


@pytest.mark.parametrize("model", ["{'name': 'mlp', 'sizes': (64, 8, 10)}", "{'name': 'other.py:build'}"])
def test_a_script_without_a_main_guard_is_run_once_and_has_its_results(tmp_path, model):
    done = script(tmp_path, f"print('once')\nfrom sharpnb.lab.sweep import sweep\nMODEL = {model}{CALL}", other=BUILD)
    assert (done.returncode, done.stdout) == (0, "once\nREASONS [''] 2\n"), done.stderr


@pytest.mark.parametrize("name", ["mine:build", "__main__:build"])
def test_a_script_that_names_itself_needs_the_guard_and_is_told_so_once(tmp_path, name):
    head = f"from sharpnb.lab.sweep import sweep\nMODEL = {{'name': {name!r}}}\n{BUILD}"
    done = script(tmp_path, head + CALL)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "REASONS" not in done.stdout and not (tmp_path / "shards").exists()
    assert "mine.py, line" in last and 'if __name__ == "__main__":' in last
    guarded = CALL.replace("\n", "\n    ").rstrip()
    done = script(tmp_path, f"{head}\nif __name__ == '__main__':{guarded}\n")
    assert (done.returncode, done.stdout) == (0, "REASONS [''] 2\n"), done.stderr
