"""Damaged files: each is named with what to do, or the damage did no harm; nothing else is touched.

Records, pieces and shards are files of ``sharpnb.kept``, of which the unit tests turn every bit.
"""

from __future__ import annotations

import contextlib

import matplotlib.image as mpimg
import numpy as np
import pytest
import torch
from harm import chances, damaged
from matplotlib import pyplot as plt

from sharpnb import paths, resume
from sharpnb.checkpoints import read_state
from sharpnb.lab import figures
from sharpnb.lab.records import RecordMismatch

ALT = "A line that falls from the upper left to the lower right."


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARPNB_ROOT", str(tmp_path))
    return tmp_path


def draw() -> None:
    figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
    ax.plot([0, 1], [1, 0])
    figures.save(figure, paths.figures("n"), "f", alt=ALT, data={"x": [0, 1], "y": [1, 0]})


def test_a_figure(monkeypatch):
    """The gate is red, or what is left of the file says the same; the next run makes it anew."""
    draw()
    folder = paths.figures("n")
    good = {file: file.read_bytes() for file in folder.iterdir()}
    seen = mpimg.imread(folder / "f.png")
    for luck in chances("a figure and its numbers", 12):
        path = luck.choice([folder / "f.png", folder / "f.csv"])
        path.write_bytes(damaged(good[path], luck, flips=path.suffix == ".png"))  # a number with another digit is one
        monkeypatch.setenv("SHARPNB_CHECK", "1")
        try:
            draw()
            assert path.suffix == ".csv" or np.array_equal(mpimg.imread(path), seen)
        except RecordMismatch as error:
            assert path.name in str(error)
        plt.close("all")
        monkeypatch.setenv("SHARPNB_CHECK", "")
        draw()
        assert {file: file.read_bytes() for file in folder.iterdir()} == good


def test_a_checkpoint_of_ones_own(project):
    path, state = project / "net.pt", {"weight": torch.randn(40, 40), "bias": torch.randn(40)}
    torch.save(state, path)
    good, wrong = path.read_bytes(), 0
    for luck in chances("a checkpoint given to `sharpnb spectrum`", 60):
        path.write_bytes(damaged(good, luck))
        try:
            found = read_state(path)
            assert all(torch.equal(found[name], value) for name, value in state.items())
        except ValueError as error:
            assert "net.pt" in str(error)
        with contextlib.suppress(Exception):
            found = torch.load(path, weights_only=True)
            wrong += not all(torch.equal(found[name], value) for name, value in state.items())
    assert wrong, "the control: torch.load alone takes other weights for these"


def test_a_state(project):
    """Of a spectrum or a surface that was interrupted: named, and made anew once it is deleted."""
    path, rows = project / "state.npz", np.random.default_rng(0).normal(size=(20, 20))
    saved = resume.Checkpoint(path, ("key",))
    saved.save(lambda: {"rows": rows}, force=True)
    good = path.read_bytes()
    for luck in chances("the state of a spectrum or a surface", 60):
        path.write_bytes(damaged(good, luck))
        try:
            found = saved.load()
            assert found is not None
            np.testing.assert_array_equal(found["rows"], rows)
        except ValueError as error:
            assert "state.npz is damaged" in str(error) and "Delete it" in str(error)
