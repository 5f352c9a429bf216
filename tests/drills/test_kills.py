"""SIGKILL at random moments: of a write, a Lanczos run, a sweep. The truth is the undisturbed run."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import psutil
import torch
from harm import FORK, chances, killed, plain_write, seconds_of

from sharpnb import paths
from sharpnb.curvature import spectral_density
from sharpnb.lab import log2_grid, sweep


def rewriting(write, path):
    """Write one file over and over, each time all of another digit."""
    for number in range(10**6):
        write(path, str(number % 10) * 300_000)


def is_whole(path) -> bool:
    content = path.read_text()
    return len(content) == 300_000 and len(set(content)) == 1


def test_a_file(tmp_path):
    path, lost = tmp_path / "file", {paths.write_whole: 0, plain_write: 0}
    paths.write_whole(path, "0" * 300_000)
    for write in lost:
        for luck in chances("a file of the project", 15):
            assert killed(lambda write=write: rewriting(write, path), luck, 0.05)
            lost[write] += not is_whole(path)
    assert not lost[paths.write_whole] and lost[plain_write], "the control is written in place"


class Slow:
    """A diagonal operator that takes a millisecond a product and counts them."""

    def __init__(self):
        self.values = torch.linspace(-1, 3, 80, dtype=torch.float64) ** 3
        self.shape, self.dtype, self.device, self.made = (80, 80), torch.float64, torch.device("cpu"), 0

    def __matmul__(self, v):
        self.made += 1
        time.sleep(1e-3)
        return self.values * v


def density(path=None, op=None):
    return spectral_density(op or Slow(), steps=12, probes=4, checkpoint=path, checkpoint_every=0, memory=12 * 80 * 8)


def test_lanczos(tmp_path):
    whole, seconds = density(), seconds_of(lambda: density(tmp_path / "timed.npz"))
    for number, luck in enumerate(chances("a spectrum by Lanczos", 5)):
        path, op = tmp_path / f"{number}.npz", Slow()
        for _ in range(3):
            killed(lambda path=path: density(path), luck, seconds)
        began_anew, resumed = not path.exists(), density(path, op)
        np.testing.assert_array_equal(resumed.nodes, whole.nodes)
        np.testing.assert_array_equal(resumed.weights, whole.weights)
        np.testing.assert_array_equal(resumed.atoms, whole.atoms)
        assert resumed.products == whole.products
        assert began_anew or op.made < whole.products, "what was saved is not done again"


GRID = {"rule": "sgd", "lr": log2_grid(-8, -6), "seed": [0, 1]}


def table_in(folder, jobs=1, grid=GRID, steps=40):
    return sweep(grid, {"name": "digits", "train_size": 100}, {"name": "mlp", "sizes": (64, 6, 10)}, steps=steps,
                 batch_size=25, dtype="float64", device="cpu", progress=False, shard_size=1, jobs=jobs, folder=folder)


def written(folder) -> dict:
    return {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}


def test_a_sweep(tmp_path):
    whole, seconds = table_in(tmp_path / "whole"), seconds_of(lambda: table_in(tmp_path / "timed"))
    for number, luck in enumerate(chances("a sweep of six shards", 3)):
        folder = tmp_path / str(number)
        for _ in range(3):
            killed(lambda folder=folder: table_in(folder), luck, seconds)
        done = written(folder)
        resumed = table_in(folder)
        pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
        assert done.items() <= written(folder).items(), "a finished shard is kept and not trained again"
    assert not table_in(tmp_path / "other", grid=GRID | {"seed": [2, 3]}).equals(whole)  # the comparison can fail


def test_a_sweep_in_processes(tmp_path):
    whole = table_in(tmp_path / "whole", steps=300)
    for number, luck in enumerate(chances("a sweep in two processes", 1)):
        folder = tmp_path / str(number)
        driver = FORK.Process(target=table_in, args=(folder, 2, GRID, 300))
        driver.start()
        deadline = time.monotonic() + 60
        while not written(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(luck.uniform(0, 0.1))
        workers = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.join()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert workers and not alive, "the workers end with their driver"
        done = written(folder)
        pd.testing.assert_frame_equal(table_in(folder, steps=300), whole, check_exact=True)
        assert done.items() <= written(folder).items()
